"""The version stands in cxr/version.py; the changelog, the citation and what a run writes agree with it."""

import argparse
import re
from pathlib import Path

import pytest
import yaml
from cxr.cli.command_line import ArgumentParser
from cxr.sharing.card import describe_origin
from cxr.version import VERSION

REPOSITORY = Path(__file__).parents[1]
RELEASE = VERSION.removesuffix(".dev0")


def headings() -> list[str]:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    return re.findall(r"^## (.*)$", changelog, re.MULTILINE)


def citation() -> dict:
    return yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))


def test_changelog_begins_with_this_version_and_ends_with_the_first():
    assert re.fullmatch(r"\d+\.\d+", RELEASE)
    first, *others = headings()
    assert re.fullmatch(rf"{RELEASE} - \d{{4}}-\d\d-\d\d", first) or (
        first == f"{RELEASE} - in development" and VERSION != RELEASE
    )
    assert all(re.fullmatch(r"\d+\.\d+ - \d{4}-\d\d-\d\d", one) for one in others)
    versions = [tuple(map(int, one.partition(" ")[0].split("."))) for one in (first, *others)]
    assert versions == sorted(set(versions), reverse=True) and versions[-1] == (0, 1)


def test_citation_has_this_version_the_license_and_both_papers():
    cited = citation()
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software" and cited["message"]
    assert cited["version"] == VERSION
    license = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert license.startswith(f"{cited['license']} License")
    assert all(f"the {author['name'].removeprefix('The ')}" in license for author in cited["authors"])
    titles = [reference["title"] for reference in cited["references"]]
    assert titles[0].startswith("Implementation of Masked Autoencoders") and "Scalable" in titles[1]


def test_version_is_named_nowhere_else_in_the_code():
    folders = [REPOSITORY / name for name in ("scripts", "mimic_cxr_dataset", "chest_xray_metrics")]
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    assert [path.name for path in sources if VERSION in path.read_text(encoding="utf-8")] == ["version.py"]


def test_a_run_records_the_version():
    flags = {"model_name_or_path": None, "hub_dir": None, "model_revision": "main"}
    args = argparse.Namespace(data_dir=None, other_data_dirs=[], **flags)
    assert describe_origin(args).as_json()["version"] == VERSION


def test_scripts_print_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        ArgumentParser("A script.").parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.endswith(f" {VERSION}\n")

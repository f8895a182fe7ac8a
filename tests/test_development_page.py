"""The examples of docs/development.md work: a copy of the code is changed as they say, and run as they say.

A block ```diff begins with `--- FILE`; its other lines are as git shows them. A block ```sh is a command.
"""

import contextlib
import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from tiny_runs import run_main

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "development.md").read_text(encoding="utf-8")
FOLDERS = ("scripts", "mimic_cxr_dataset", "chest_xray_metrics")
OURS = {"cxr", *FOLDERS, *(path.stem for path in (REPOSITORY / "scripts").glob("*.py"))}


def blocks(heading: str, language: str) -> list[str]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def apply(diff: str, repository: Path) -> None:
    """Changes a file as a diff says; the lines that it does not add must be there, once."""
    first, *lines = diff.splitlines(keepends=True)
    path = repository / first.removeprefix("--- ").strip()
    before, after = ("".join(line[1:] for line in lines if line[0] not in sign) for sign in "+-")
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path.name}: found {text.count(before)} times, expected once:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


def loaded() -> dict[str, object]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in OURS}


@contextlib.contextmanager
def code_of(repository: Path) -> Iterator[None]:
    """Imports our modules from another copy of the repository: in this process, which has torch already."""
    before, path = loaded(), sys.path[:]
    sys.path[:0] = [str(repository / "scripts"), str(repository)]
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(before)
        sys.path[:] = path
    assert loaded() == before


@pytest.fixture
def run_example(tmp_path, sample_root, monkeypatch):
    """Follows an example of the page and returns the results of its run."""

    def run(heading: str) -> dict:
        repository = tmp_path / "repository"
        for folder in FOLDERS:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / folder, repository / folder, ignore=ignored)
        for diff in blocks(heading, "diff"):
            apply(diff, repository)
        monkeypatch.chdir(repository)
        [command] = blocks(heading, "sh")
        python, script, *flags = shlex.split(command.replace("\\\n", " "))
        assert python == "python"
        data, output_dir = flags.index("--data_dir") + 1, flags.index("--output_dir") + 1
        assert flags[data] == "sample_data"
        flags[data] = sample_root
        with code_of(repository):
            module = importlib.import_module(Path(script).stem)
            assert Path(module.__file__) == repository / script
            return run_main(module, repository / flags[output_dir], *flags)

    return run


def test_added_model_is_pretrained_and_has_its_name(run_example):
    name = re.search(r'`results.json` calls it "(.*?)"', PAGE)[1]
    assert run_example("Add a model")["architecture"].startswith(f"{name}, 4 heads")


def test_added_augmentation_trains_a_classifier(run_example):
    results = run_example("Add an augmentation")
    assert results["augmentation"] == "exposure" and results["steps"] == 2


def test_added_label_rule_gives_its_labels(run_example, sample_root, tmp_path):
    results = run_example("Add a label rule")
    with code_of(tmp_path / "repository"):
        rules = importlib.import_module("mimic_cxr_dataset.labels")
        images, _ = rules.index_images(sample_root, task="pneumothorax")
    labels = pd.read_csv(next(sample_root.glob("*negbio.csv*"))).set_index("study_id")
    labels = labels.loc[images["study_id"]]
    assert set(images["label"]) == {0, 1}
    assert list(labels["Pneumothorax"] == 1) == list(images["label"] == 1)
    assert (labels["No Finding"] == 1)[list(images["label"] == 0)].all()
    train = images[images["split"] == "train"]
    assert results["num_train_images"] == len(train) and results["num_train_positive"] == train["label"].sum()
    card = (tmp_path / "repository" / "runs" / "pneumothorax" / "README.md").read_text(encoding="utf-8")
    assert '"Pneumothorax" against "No Finding"' in card
    assert "1 if Pneumothorax is positive, 0 if No Finding is" in card


def test_a_diff_that_does_not_fit_is_noticed(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n\ny = 2\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="found 0 times"):
        apply("--- a.py\n-x = 2\n+x = 3\n", tmp_path)
    apply("--- a.py\n x = 1\n+z = 3\n \n-y = 2\n", tmp_path)
    assert (tmp_path / "a.py").read_text(encoding="utf-8") == "x = 1\nz = 3\n\n"


def test_page_names_all_packages():
    paths = (REPOSITORY / "scripts" / "cxr").iterdir()
    packages = {path.stem for path in paths} - {"__init__", "__pycache__"}
    table = PAGE.partition("\n## Layers\n")[2].partition("\n## ")[0]
    assert {package for package in packages if f"`{package}`" not in table} == set()

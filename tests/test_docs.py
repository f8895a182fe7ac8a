"""Pages are short, their links lead somewhere, and what is made from the code is what the code says."""

import re
from pathlib import Path

import make_run_folder_page
import make_speed_table
import make_study_page
import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "mimic_cxr_dataset", "chest_xray_metrics", "benchmarks")
PAGES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]

FENCE = re.compile(r"^( *)(`{3,}).*?^ *\2 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)")
FILE = re.compile(
    r"\b(?:tests|scripts|docs|benchmarks|accelerate_configs|mimic_cxr_dataset)/[\w./*-]+\.(?:py|yaml)"
)


@pytest.mark.parametrize("made_by", [make_run_folder_page, make_speed_table, make_study_page])
def test_page_is_made_from_the_declarations_in_the_code(made_by):
    said = f"run: python docs/{made_by.__name__}.py"
    assert made_by.PAGE.read_text(encoding="utf-8") == made_by.page(), said


def test_readme_can_be_read_in_five_minutes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    assert len(text.split()) <= 1500


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_page_answers_one_question_in_200_lines(page):
    is_made = page in (make_run_folder_page.PAGE, make_study_page.PAGE)
    lines = page.read_text(encoding="utf-8").splitlines()
    assert is_made or len(lines) <= 200
    assert "```bash" in lines[:10] or page.name in ("glossary.md", "limits.md"), "begin with a command"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings_that_are_there(page):
    lost = [link for link in links(page) if not leads_somewhere(page, link)]
    assert not lost, f"{page.relative_to(ROOT)}: {lost}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_of_the_repository_that_a_page_names_are_there(page):
    named = FILE.findall(page.read_text(encoding="utf-8"))
    assert not [name for name in named if not list(ROOT.glob(name))]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_in_the_index(page):
    index = ROOT / "docs" / "index.md"
    listed = re.search(
        r"^```{toctree}\n(.*?)^```", index.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert page == index or (page.name in links(index) and page.stem in listed[1].split())


def links(page: Path) -> list[str]:
    return LINK.findall(CODE.sub("", FENCE.sub("", page.read_text(encoding="utf-8"))))


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether a link of a page is to another server, or to a file and a heading that are there."""
    if re.match(r"https?://|mailto:", link):
        return True
    name, _, anchor = link.partition("#")
    target = (page.parent / name) if name else page
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    """What a link to a page may end in: its headings as GitHub, and Sphinx after it, write them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found[slug] = found.get(slug, 0) + 1
    repeated = {f"{slug}-{number}" for slug, count in found.items() for number in range(1, count)}
    return {*found, *repeated}


def test_headings_become_the_anchors_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` & c\n\n## Twice\n```bash\n# no heading\n```\n## Twice\n## rand-m9-mstd0.5\n",
        encoding="utf-8",
    )
    assert {"a-b--c", "twice", "twice-1", "rand-m9-mstd05"} <= anchors(page)
    assert not {"no-heading", "twice-0", "twice-2"} & anchors(page)

"""Writes the table of presets in docs/study.md from the grids, so that they cannot differ.

python docs/make_study_page.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))  # for cxr

from cxr.study.plan_tables import preset_rows

PAGE = Path(__file__).with_name("study.md")
BEGIN = "<!-- This table is made by docs/make_study_page.py from scripts/cxr/study/presets.py. -->\n"
END = "<!-- The end of the table. -->\n"


def table() -> str:
    """In Markdown, a column a preset."""
    header, *rows = preset_rows()
    lines = [header, ["---"] * len(header)]
    for title, *values in rows:
        if title == "--set":
            values = ["<br>".join(f"`{flag}`" for flag in value.split()) for value in values]
        lines.append([f"`{title}`" if title.startswith("--") else title, *values])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page() -> str:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")

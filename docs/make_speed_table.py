"""Writes the table of the newest results of benchmarks/gpu.py in docs/speed.md, so that they cannot differ.

python docs/make_speed_table.py
"""

import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu_table import table

PAGE = Path(__file__).with_name("speed.md")
BEGIN = (
    "<!-- This table is made by docs/make_speed_table.py from the newest file of benchmarks/results. -->\n"
)
END = "<!-- The end of the table. -->\n"


def measured() -> str:
    """In Markdown, nothing if there is no results file."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (BENCHMARKS / "results").glob("*.json")]
    if not found:
        return ""
    newest = max(found, key=lambda results: results["date"])
    machine = newest["machine"]
    where = f"{machine['gpu'] or machine['processor']}, {newest['date']}, commit {newest['commit'][:10]}"
    return f"\n{where}:\n\n{table(newest)}\n"


def page() -> str:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + measured() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")

"""Writes the tables of docs/run-folder.md from the declarations of the records, so that they cannot differ.

python docs/make_run_folder_page.py
"""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))  # for cxr

from cxr.run_folder import record
from cxr.run_folder.evaluation_record import EvaluationResults
from cxr.run_folder.model_fields import ModelFields
from cxr.run_folder.probe_record import ProbeResults
from cxr.study.grid import Plan
from cxr.training.progress import Progress

PAGE = Path(__file__).with_name("run-folder.md")
MARK = "<!-- What follows is made by docs/make_run_folder_page.py from the declarations in the code. -->\n"
LINES = (record.Sample, record.Epoch, record.BadStep)
RESULTS = (record.PretrainingResults, record.ClassificationResults)
RECORDS = (record.Arguments, *LINES, *RESULTS, Progress, ModelFields, Plan, ProbeResults, EvaluationResults)


def tables() -> dict[str, dict[str, Any]]:
    """The JSON schema of each record, and of the records inside it, by name."""
    found = {}
    for kind in RECORDS:
        schema = kind.model_json_schema()
        found |= {kind.__name__: schema} | schema.get("$defs", {})
    return found


def describe(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"\n## {name}\n\n{textwrap.fill(' '.join(schema.get('description', '').split()), width=110)}\n"
    yield "| field | type | what it is |\n| --- | --- | --- |"
    for field, value in schema.get("properties", {}).items():
        said = [value["description"]] if "description" in value else []
        said += [] if field in schema.get("required", ()) else ["may be absent"]
        yield f"| `{field}` | {type_name(value)} | {'; '.join(said)} |"


def type_name(value: dict[str, Any]) -> str:
    if kinds := value.get("anyOf", value.get("oneOf")):
        return " or ".join(map(type_name, kinds))
    if "$ref" in value:
        return value["$ref"].rpartition("/")[2]
    if "items" in value:
        return f"array of {type_name(value['items'])}"
    return repr(value["const"]) if "const" in value else value.get("type", "any")


def page() -> str:
    lines = [line for name, schema in tables().items() for line in describe(name, schema)]
    return PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")

"""Writes docs/run-folder.md from the declarations of the records, so that the page cannot differ from them.

python docs/make_run_folder_page.py
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from types import UnionType
from typing import Annotated
from typing import Any
from typing import Literal
from typing import Union
from typing import get_origin

from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))  # for cxr

from cxr.models.configs import ModelFields
from cxr.run_folder import record
from cxr.study.grid import Plan
from cxr.training.progress import Progress

PAGE = Path(__file__).with_name("run-folder.md")
RECORDS = (
    record.Arguments,
    record.Sample,
    record.Epoch,
    record.BadStep,
    record.PretrainingResults,
    record.ClassificationResults,
    Progress,
    ModelFields,
    Plan,
)
HEAD = """# The run folder

```bash
ls -A runs/demo/mae-vit    # what a finished run has left
```

The run folder is the contract between the commands: run_study.py, report_study.py and hub.py read what a run
has written, and nothing else. `results.json` is written last, atomically: where it is, the run is finished.

| file | what it is | private |
| --- | --- | --- |
| `args.json` | every flag, and where the run comes from | |
| `train.log` | what was said, without ids; traces of errors | |
| `samples.json` | the images that were trained on | yes |
| `metrics.jsonl` | a line an epoch | |
| `bad_steps.jsonl` | images of steps that were skipped for a NaN or infinite loss | yes |
| `checkpoints/step_N/` | what a resume needs, whole or not there | |
| `model/` | for `from_pretrained`: of the best epoch, or the last one of a pretraining | |
| `predictions_SPLIT.csv` | label and probability of each image (classification) | yes |
| `loss.png`, `roc_pr_SPLIT.png`, `confusion_matrix_SPLIT.png` | figures | |
| `reconstructions.png` | what the autoencoder draws (pretraining); it shows images of patients | |
| `README.md` | the model card | |
| `results.json` | what was measured | |
| `.lock`, `.owner.json` | keep a second run out | |

A study's folder has a run folder for each of its cells, `plan.json`, `logs/` (private), and the report.

The tables below are made from the declarations in the code. A file that does not fit is refused in
one line; fields that are not declared are kept, so that folders of other versions can be read.
"""


def describe(kind: type[BaseModel]) -> Iterator[str]:
    """The title, what it is, and a table of the fields; then the same of records inside it, once each."""
    yield f"\n## {kind.__name__}\n\n{' '.join(kind.__doc__.split())}\n"
    yield "| field | type | what it is |\n| --- | --- | --- |"
    for name, field in kind.model_fields.items():
        required = "" if field.is_required() else " May be absent."
        yield f"| `{name}` | {type_name(field.annotation)} | {field.description or ''}{required} |"


def type_name(annotation: object) -> str:
    """A type in words of JSON, without the bounds that are checked."""
    name, parts = get_origin(annotation), getattr(annotation, "__args__", ())
    if name is Annotated:
        return type_name(parts[0])
    if name is Literal:
        return " or ".join(map(repr, parts))
    if name is Union or isinstance(annotation, UnionType):
        return " or ".join(map(type_name, parts))
    if parts:
        return f"{name.__name__} of {' to '.join(map(type_name, parts))}"
    return {NoneType: "null", Any: "any"}.get(annotation) or annotation.__name__


def page() -> str:
    kinds = dict.fromkeys([*RECORDS, *(found for kind in RECORDS for found in inside(kind))])
    return HEAD + "\n".join(line for kind in kinds for line in describe(kind)) + "\n"


def inside(annotation: object) -> Iterator[type[BaseModel]]:
    """The records that a type is made of, and those that they are made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from inside(field.annotation)
    for part in getattr(annotation, "__args__", ()):
        yield from inside(part)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")

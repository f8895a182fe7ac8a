"""Keeps the ids of images, studies and patients out of logs and shared files, as the data-use agreement asks.

Someone with access to the data must not pass them on.
"""

import logging
import re
from pathlib import Path

from cxr.errors import UserError

# The path or the id of an image, or the number of a patient (1...) or study (5...), alone or after a word
# like "patient"; but not inside a hash, nor in the digits after a decimal point.
IDS = re.compile(
    r"\S*\bfiles[/\\]+p1\d\S*"
    r"|(?i:[0-9a-f]{8}(?:-[0-9a-f]{8}){4})"
    r"|(?:(?<![0-9A-Za-z])|(?<=\\[nrt])|(?<=%2[Ff]))(?<!\d\.)"
    r"(?i:(?:p|patient|subject|id)?1\d{7}(?:s5\d{7})?|(?:s|study|id)?5\d{7})(?![0-9A-Za-z])"
)
# The files of a model. Of images, only plots of metrics: others may show a patient.
SHARED_FILES = re.compile(
    r"README\.md|(?:config|preprocessor_config|model\.safetensors\.index)\.json"
    r"|model(?:-\d{5}-of-\d{5})?\.safetensors|[\w.-]+\.onnx"
    r"|(?:loss|(?:roc|auroc|confusion_matrix)_\w+)\.png"
)


def mask_ids(text: str) -> str:
    return IDS.sub("<id>", text)


def files_to_share(model_dir: Path) -> list[Path]:
    """Returns the files of a model. Raises UserError if the folder has other files, or ids of patients."""
    for name, what in (("config.json", "a run or of a model"), ("README.md", "a model with its card")):
        if not (model_dir / name).is_file():
            raise UserError(f"{model_dir}: found no {name}; expected the folder of {what}")
    files = sorted(model_dir.iterdir())
    for path in files:
        if not path.is_file() or not SHARED_FILES.fullmatch(path.name) or mask_ids(path.name) != path.name:
            raise UserError(
                f"{path}: found in a folder to share, expected only README.md, config.json, "
                "preprocessor_config.json, safetensors, ONNX and the figures of a run; move it elsewhere"
            )
        if path.suffix in (".json", ".md"):
            text = path.read_text(encoding="utf-8", errors="replace")
            if mask_ids(text) != text:
                raise UserError(
                    f"{path}: found text that looks like the id of a patient, a study or an image, expected "
                    "none in a folder to share; remove it"
                )
    return files


class MaskingFormatter(logging.Formatter):
    """Formats a log record with its trace, and masks ids in it."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_ids(super().format(record))

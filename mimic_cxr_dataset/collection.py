"""What collection.json in the root of a data folder says about the images below it."""

from pathlib import Path
from typing import Any

from pydantic import AliasChoices
from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import ValidationError
from pydantic import model_validator

from .errors import DatasetError
from .radiographs import Reading

COLLECTION_FILE = "collection.json"
SPELLINGS = ("equalized", "equalised")


class Collection(BaseModel):
    """Without the file, or a field of it, that is unknown; other fields are the collection's own."""

    model_config = ConfigDict(frozen=True, strict=True)

    equalized: bool | None = Field(
        default=None,
        validation_alias=AliasChoices(*SPELLINGS),
        description="whether the histograms of the images are equalised, as MIMIC-CXR-JPG's are; DICOM files "
        "and pictures of more than 8 bits are equalised when they are read, unless this is false",
    )

    @property
    def reading(self) -> Reading:
        return Reading(equalizes=self.equalized is not False)

    @model_validator(mode="before")
    @classmethod
    def _check_spelling(cls, fields: Any) -> Any:
        """A field that is meant, and not read, would be missed in silence."""
        names = [name for name in fields if "equali" in name.lower()] if isinstance(fields, dict) else []
        if len(names) > 1 or not {*names} <= {*SPELLINGS}:
            raise ValueError(f"found {' and '.join(map(repr, names))[:100]}")
        return fields


def read_collection(root: Path) -> Collection:
    """Returns what `root` says of its images. Raises DatasetError for a file that says it in another way."""
    path = root / COLLECTION_FILE
    if not path.is_file():
        return Collection()
    try:
        return Collection.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        problem = problem.removeprefix("Value error, ")
        raise DatasetError(
            f'{path}: {problem[:1].lower()}{problem[1:]}; expected JSON such as {{"equalized": false}}: '
            "correct it."
        ) from error

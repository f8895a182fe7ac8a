"""Reads collection.json, the file in the root of a data folder that describes its images."""

from pathlib import Path
from typing import Annotated
from typing import Any

from pydantic import AfterValidator
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
MAX_TEXT_LENGTH = 1000


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"found {text!r:.50}, expected printable text")
    return text


Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_LENGTH), AfterValidator(_printable)]


class Collection(BaseModel):
    """The content of collection.json. A missing field means unknown; fields not named here are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    name: Text | None = Field(default=None, description="name of the collection, for cards and reports")
    labels: list[Text] | None = Field(
        default=None, description="the columns of manifest.csv that are labels; null: those that look so"
    )
    derived_from: Text | None = Field(
        default=None, description="name of the collection whose images these are, under other ids or labels"
    )
    license: Text | None = Field(default=None, description="of the images and labels")
    citation: Text | None = Field(default=None, description="what to cite")
    equalized: bool | None = Field(
        default=None,
        validation_alias=AliasChoices(*SPELLINGS),
        description="whether the histograms of the images are equalised, as those of MIMIC-CXR-JPG are; if "
        "false, DICOM files and images of more than 8 bits are not equalised when they are read",
    )

    @model_validator(mode="before")
    @classmethod
    def _check_spelling(cls, fields: Any) -> Any:
        """Refuses a misspelled `equalized`, which would otherwise be ignored without a message."""
        names = [name for name in fields if "equali" in name.lower()] if isinstance(fields, dict) else []
        if len(names) > 1 or not {*names} <= {*SPELLINGS}:
            raise ValueError(f"found {' and '.join(map(repr, names))[:100]}")
        return fields

    @property
    def reading(self) -> Reading:
        """Returns how the files of the collection are read."""
        return Reading(equalizes=self.equalized is not False)


def read_collection(root: Path) -> Collection:
    """Returns the content of collection.json in `root`. Raises DatasetError for a file that is not valid."""
    path = root / COLLECTION_FILE
    if not path.is_file():
        return Collection()
    try:
        return Collection.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        problem = problem.removeprefix("Value error, ")
        names = error.errors()[0]["loc"][:1] if isinstance(error, ValidationError) else ()
        where = ", ".join([str(path), *map(str, names)])
        raise DatasetError(
            f'{where}: {problem[:1].lower()}{problem[1:]}; expected JSON such as {{"equalized": false}}: '
            "correct it."
        ) from error

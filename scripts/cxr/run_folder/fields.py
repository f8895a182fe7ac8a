"""What all records have in common: a pydantic model of a JSON file of ours, and the types of its fields."""

from pathlib import Path
from typing import Annotated
from typing import Any
from typing import ClassVar

from pydantic import AfterValidator
from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import ValidationError
from typing_extensions import Self

from cxr.errors import UserError


def _printable(text: str) -> str:
    """Refuses unprintable text, because names and flags become parts of titles, file names and tables."""
    if not text.isprintable():
        raise ValueError(f"found {text!r:.50}, expected printable text")
    return text


TAGS = ("one label", "several labels")  # of records that are one or the other
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Word = Annotated[str, Field(min_length=1, max_length=40), AfterValidator(_printable)]
Name = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_printable)]


def first_problem(error: ValidationError) -> str:
    """Returns what was found and what was expected for the first field that is not valid."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"] if part not in TAGS)
    if first["type"] == "missing":
        return f"found no {field}"
    if first["type"] == "value_error":  # from one of our validators, whose message is complete
        return first["msg"].removeprefix("Value error, ")
    expected = first["msg"].removeprefix("Input should be ")
    return f"found {field + '=' if field else ''}{first['input']!r:.50}, expected {expected}"


class Record(BaseModel):
    """A JSON file of ours, or an object in it; its fields are declared once, for writing, reading and docs.

    Fields that are not declared are kept, so that folders of other versions of this code can be read.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, validate_assignment=True)
    writer: ClassVar[str] = "a run"
    advice: ClassVar[str] = "restore the file, or run it again"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the file. Raises UserError, in one line, if it is missing or does not fit the declaration."""
        try:
            return cls.parse(path.read_bytes(), where=path)
        except FileNotFoundError:
            raise UserError(
                f"{path}: found no such file, expected the one that {cls.writer} writes; {cls.advice}"
            ) from None
        except OSError as error:  # such as a private file of another user
            raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable for you") from error

    @classmethod
    def parse(cls, text: str | bytes, *, where: object) -> Self:
        """Parses a JSON text. Raises UserError, which starts with `where`."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problem = first_problem(error)
            raise UserError(f"{where}: not what {cls.writer} writes: {problem}; {cls.advice}") from error

    def as_json(self) -> dict[str, Any]:
        """Returns what is written: the fields that were set, without unset defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

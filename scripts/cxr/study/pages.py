"""What all reports have in common: templates, and numbers, intervals and figures in them."""

import base64
from pathlib import Path

import jinja2

from cxr.evaluation.intervals import Difference
from cxr.evaluation.intervals import Interval
from cxr.study.answer import format_p
from cxr.study.names import format_number
from cxr.study.names import plural

TEMPLATES = Path(__file__).parent / "templates"


def make_environment(output_dir: Path, *, templates: Path | None = None) -> jinja2.Environment:
    """Returns the templates of a room, and those of the study, for a report in `output_dir`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*filter(None, [templates]), TEMPLATES]),
        autoescape=lambda name: name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": format_number, "signed": signed, "span": span, "embed": embed}
    environment.filters |= {"p": format_p, "plural": plural}
    # Escapes a name in a Markdown table.
    environment.filters["cell"] = lambda text: str(text).replace("|", "/").replace("<", "&lt;")
    environment.filters["relative"] = lambda path: path.relative_to(output_dir).as_posix()
    return environment


def signed(difference: Difference) -> str:
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def span(interval: Interval | list[float] | None) -> str:
    """Returns an interval as text; in a record it is a pair."""
    if not interval:
        return ""
    low, high = (interval.low, interval.high) if isinstance(interval, Interval) else interval
    return f"[{low:.3f}, {high:.3f}]"


def embed(path: Path) -> str:
    """Returns a PNG as a data URL, to embed it in the page."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")

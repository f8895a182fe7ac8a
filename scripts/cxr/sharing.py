"""What becomes of a run's model: a card beside it, and a push where the run's flags ask for one."""

import logging
from pathlib import Path
from typing import Any

from cxr.card import write_card
from cxr.hub import push
from cxr.optimization import Schedule
from cxr.records import installed_versions
from cxr.records import read_json

logger = logging.getLogger(__name__)


def share_model(output_dir: Path, results: dict[str, Any], *, is_final: bool = True) -> str | None:
    """Writes the card of OUTPUT_DIR/model and pushes it as the run's args.json says; returns the commit.

    `results` is what results.json will hold, as far as it is known. Raises OSError or ValueError.
    """
    args = read_json(output_dir / "args.json")
    write_card(output_dir, args=args, results=results, sample=read_json(output_dir / "samples.json"))
    if not args["push_to_hub"]:
        return None
    return push(
        output_dir / "model",
        hub_dir=Path(args["hub_dir"]) if args["hub_dir"] else None,
        model_id=args["hub_model_id"],
        message=f"{results['task']}, {results['steps']:,} steps",
        tag=args["hub_revision"] if is_final else None,
    )


def share_unfinished(output_dir: Path, task: str, schedule: Schedule, step: int) -> None:
    """Shares the model of a training after `step` steps. If that fails, the training goes on."""
    facts = {"task": task, "steps": step, "images_per_step": schedule.images_per_step}
    try:
        share_model(output_dir, {**facts, "versions": installed_versions()}, is_final=False)
    except (OSError, ValueError) as error:
        logger.warning("The model of this checkpoint was not pushed: %s", error)

"""Shares a run's model: writes its card, and pushes it if the run's flags or the user ask for it."""

import logging
import shlex
import tempfile
from pathlib import Path

from cxr.errors import UserError
from cxr.run_folder.files import read_json
from cxr.run_folder.files import write_text
from cxr.run_folder.privacy import files_to_share
from cxr.run_folder.record import Arguments
from cxr.run_folder.record import Results
from cxr.run_folder.record import RunRecord
from cxr.run_folder.record import Sample
from cxr.run_folder.record import Training
from cxr.run_folder.record import read_results
from cxr.sharing import local_hub
from cxr.sharing import online_hub
from cxr.sharing.card import make_card
from cxr.sharing.card import write_card
from cxr.sharing.local_hub import link_or_copy

logger = logging.getLogger(__name__)


def check_push(*, hub_dir: Path | None, model_id: str, tag: str | None) -> None:
    """Raises UserError, before a training, if the push after it would fail."""
    if hub_dir is None:
        online_hub.check_push(model_id=model_id, tag=tag)
    else:
        local_hub.check_push(hub_dir=hub_dir, model_id=model_id, tag=tag)


def push(
    model_dir: Path, *, hub_dir: Path | None, model_id: str, message: str, tag: str | None = None
) -> str:
    """Pushes to `hub_dir` or, if that is None, to the Hugging Face Hub. Returns the commit."""
    options = {"model_id": model_id, "message": message, "tag": tag}
    if hub_dir is None:
        commit = online_hub.push(model_dir, **options)
    else:
        commit = local_hub.push(model_dir, hub_dir=hub_dir, **options)
    code = loading_code(model_dir, hub_dir=hub_dir, model_id=model_id, revision=tag or commit)
    logger.info("Pushed revision %s. To load it:\n%s", commit, code)
    return commit


def loading_code(model_dir: Path, *, hub_dir: Path | None, model_id: str, revision: str) -> str:
    """Returns two lines of Python that load a pushed revision of the model in `model_dir`."""
    kinds = read_json(model_dir / "config.json").get("architectures")
    kind = kinds[0] if isinstance(kinds, list) and kinds else "AutoModel"
    where = f", cache_dir={str(hub_dir.absolute())!r}, local_files_only=True" if hub_dir else ""
    return (
        f"from transformers import {kind}\n"
        f"model = {kind}.from_pretrained({model_id!r}, revision={revision!r}{where})"
    )


def push_folder(folder: Path, *, hub_dir: Path | None, model_id: str, message: str, tag: str | None) -> str:
    """Pushes a model folder as it is or, given a finished run, its model/ with a card of the new name.

    The folder is not changed. Raises UserError.
    """
    if folder.name == "model" and (folder.parent / "results.json").is_file():
        folder = folder.parent
    options = {"hub_dir": hub_dir, "model_id": model_id, "message": message, "tag": tag}
    if not (folder / "args.json").is_file():
        return push(folder, **options)
    args, results = Arguments.read(folder / "args.json"), read_results(folder)
    if results is None:
        raise UserError(
            f"{folder}: found no results.json, expected a finished run; continue it with "
            "--resume_from_checkpoint latest"
        )
    args = args.model_copy(update={"hub_model_id": model_id, "hub_dir": hub_dir and str(hub_dir)})
    card = make_card(folder / "model", args, results, Sample.read(folder / "samples.json"))
    with tempfile.TemporaryDirectory() as temporary:
        for path in files_to_share(folder / "model"):
            link_or_copy(path.absolute(), Path(temporary) / path.name)
        write_text(Path(temporary) / "README.md", card)
        return push(Path(temporary), **options)


def share_finished(record: RunRecord, results: Results) -> None:
    """Writes the model's card, pushes the model if args.json says so, and finally writes results.json.

    results.json is written even if the push fails, because the run is finished. Raises UserError.
    """
    output_dir = record.output_dir
    args = Arguments.read(output_dir / "args.json")
    write_card(output_dir, args, results)
    commit, failure = None, None
    if args.push_to_hub:
        try:
            commit = _push_model(output_dir, args, results, tag=args.hub_revision)
        except Exception as error:
            failure = error
    record.write("results.json", results.model_copy(update={"hub_commit": commit}))
    if isinstance(failure, OSError | UserError):
        command = ["python", "scripts/hub.py", "push", str(output_dir), args.hub_model_id]
        for flag, value in (("--hub_dir", args.hub_dir), ("--tag", args.hub_revision)):
            command += [flag, value] if value else []
        raise UserError(
            f"{failure}; the run is finished, only the push failed: repeat it with {shlex.join(command)}"
        ) from failure
    if failure:
        raise failure


def share_unfinished(output_dir: Path, training: Training) -> None:
    """Shares the model of an unfinished training. If that fails, it warns and the training continues."""
    args = Arguments.read(output_dir / "args.json")
    try:
        write_card(output_dir, args, training)
        _push_model(output_dir, args, training, tag=None)
    except (OSError, UserError) as error:
        logger.warning("The model of this checkpoint was not pushed: %s", error)


def _push_model(output_dir: Path, args: Arguments, training: Training, *, tag: str | None) -> str:
    return push(
        output_dir / "model",
        hub_dir=Path(args.hub_dir) if args.hub_dir else None,
        model_id=args.hub_model_id,
        message=f"{training.task}, {training.steps:,} steps",
        tag=tag,
    )

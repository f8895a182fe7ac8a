"""Pushes models to the Hugging Face Hub: only private ones, as models of this data may not be public."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from cxr.errors import UserError
from cxr.run_folder.privacy import files_to_share
from cxr.sharing.local_hub import tag_is_taken


def check_push(*, model_id: str, tag: str | None) -> None:
    """Raises UserError, before a training, if the push after it would fail. Creates nothing."""
    _, tags = _look(model_id)
    if tag in tags:
        raise tag_is_taken(tag, tags[tag])


def push(model_dir: Path, *, model_id: str, message: str, tag: str | None = None) -> str:
    """Adds the files of `model_dir`, and only those, as a revision of `model_id`; returns its commit.

    Raises UserError if the folder holds anything but a model, the model is public or the tag is in use, and
    OSError.
    """
    names = [path.name for path in files_to_share(model_dir)]
    with _asking_the_hub():
        HfApi().create_repo(model_id, private=True, exist_ok=True)
    main, tags = _look(model_id)
    if tags.get(tag, main) != main:
        raise tag_is_taken(tag, tags[tag])
    with _asking_the_hub():
        api = HfApi()
        commit = api.upload_folder(
            repo_id=model_id,
            folder_path=model_dir,
            commit_message=message,
            allow_patterns=names,
            delete_patterns="*",  # of an earlier revision
        ).oid
        if tag and tag not in tags:
            api.create_tag(model_id, tag=tag, revision=commit)
    if tags.get(tag, commit) != commit:
        raise UserError(f"the model was pushed as revision {commit[:8]}, but {tag_is_taken(tag, tags[tag])}")
    return commit


def _look(model_id: str) -> tuple[str | None, dict[str, str]]:
    """Returns the commit of main and of each tag. Raises UserError for a public model."""
    with _asking_the_hub():
        api = HfApi()
        api.whoami()  # without a login, a private model looks as if it did not exist
        try:
            info = api.model_info(model_id)
        except RepositoryNotFoundError:
            return None, {}
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(model_id).tags}
    if not info.private:
        raise UserError(
            f"{model_id}: found a public model on the Hugging Face Hub, expected a private one; make it "
            "private in its settings, or name another"
        )
    return info.sha, tags


@contextlib.contextmanager
def _asking_the_hub() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # network, Hub and login errors have no common type
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--push_to_hub: the Hugging Face Hub gave an error ({reason}); log in with hf auth login, "
            "or name a --hub_dir to push to a local directory"
        ) from error

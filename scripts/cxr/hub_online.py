"""Models on the Hugging Face Hub itself: private ones, as what is derived from the data may not be public."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi

from cxr.privacy import files_to_share


def check_push(*, model_id: str, tag: str | None) -> None:
    """Makes the model, which must be private, if there is none. Raises OSError or ValueError."""
    with _asking_the_hub():
        api = HfApi()
        api.create_repo(model_id, private=True, exist_ok=True)
        is_private = api.model_info(model_id).private
        tags = _tags(api, model_id)
    if not is_private:
        raise ValueError(
            f"{model_id}: found a public model on the Hugging Face Hub, expected a private one; make it "
            "private in its settings, or name another"
        )
    if tag in tags:
        raise _moved(tag, tags[tag])


def push(model_dir: Path, *, model_id: str, message: str, tag: str | None = None) -> str:
    """Adds the files of `model_dir`, and no others, as a revision of `model_id`; returns its commit.

    Raises ValueError for a folder that holds anything but a model and for a public model, and OSError.
    """
    names = [path.name for path in files_to_share(model_dir)]
    check_push(model_id=model_id, tag=None)
    with _asking_the_hub():
        api = HfApi()
        commit = api.upload_folder(
            repo_id=model_id,
            folder_path=model_dir,
            commit_message=message,
            allow_patterns=names,
            delete_patterns="*",  # of an earlier revision
        ).oid
        tags = _tags(api, model_id)
        if tag and tag not in tags:
            api.create_tag(model_id, tag=tag, revision=commit)
    if tags.get(tag, commit) != commit:
        raise _moved(tag, tags[tag])
    return commit


def _tags(api: HfApi, model_id: str) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(model_id).tags}


def _moved(tag: str, commit: str) -> ValueError:
    return ValueError(
        f"found the tag {tag} at revision {commit[:8]}, expected a new one: a tag is never moved"
    )


@contextlib.contextmanager
def _asking_the_hub() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the network, of the Hub, of the login: each has its own kinds
        reason = " ".join(str(error).split())[:300]
        raise OSError(
            f"--push_to_hub: the Hugging Face Hub could not be asked ({reason}); log in with hf auth login, "
            "or name a --hub_dir to push to a local directory"
        ) from error

"""Models by name in a local directory, read by plain transformers and huggingface_hub, without a network."""

import shutil
from pathlib import Path

import pytest
import torch
from cxr import hub
from cxr import models
from huggingface_hub import scan_cache_dir
from transformers import ViTConfig
from transformers import ViTForImageClassification

NAME = "my-lab/mae-cxr"


def make_model(folder: Path, *, bias: float) -> Path:
    """Saves a tiny classifier; two of them differ in their weights and in no other file."""
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    torch.nn.init.constant_(model.classifier.bias, bias)
    model.save_pretrained(folder)
    models.load_image_processor(None, hub_dir=None, revision="main", image_size=16).save_pretrained(folder)
    return folder


def push(folder: Path, hub_dir: Path) -> str:
    return hub.push_model(folder, hub_dir=hub_dir, model_id=NAME)


def load_bias(hub_dir: Path, revision: str = "main") -> float:
    model = ViTForImageClassification.from_pretrained(
        NAME, cache_dir=str(hub_dir), local_files_only=True, revision=revision
    )
    return model.classifier.bias[0].item()


@pytest.fixture(params=["links", "copies"])
def pushed(request, tmp_path, monkeypatch) -> tuple[Path, list[str]]:
    """A directory with two revisions, with and without the right to make links; and their commits."""
    if request.param == "copies":

        def not_allowed(self, target, target_is_directory=False):
            raise OSError(1314, "A required privilege is not held by the client")

        monkeypatch.setattr(Path, "symlink_to", not_allowed)
    hub_dir = tmp_path / "hub"
    return hub_dir, [push(make_model(tmp_path / f"model-{bias}", bias=bias), hub_dir) for bias in (1.0, 2.0)]


def repository(hub_dir: Path) -> Path:
    return hub_dir / "models--my-lab--mae-cxr"


def main_of(hub_dir: Path) -> str:
    return (repository(hub_dir) / "refs" / "main").read_text(encoding="utf-8")


def snapshots(hub_dir: Path) -> set[str]:
    return {path.name for path in (repository(hub_dir) / "snapshots").iterdir()}


def test_two_pushes_are_two_revisions_and_main_is_the_second(pushed):
    hub_dir, commits = pushed
    assert len(set(commits)) == 2
    assert snapshots(hub_dir) == set(commits)
    assert main_of(hub_dir) == commits[1]
    assert all(len(commit) == 40 and int(commit, 16) for commit in commits)


def test_unchanged_files_are_stored_once(pushed):
    hub_dir, _ = pushed
    # Two weights, one configuration, one image processor.
    assert len(list((repository(hub_dir) / "blobs").iterdir())) == 4


def test_snapshots_have_the_files_as_they_were(pushed):
    hub_dir, commits = pushed
    for commit, source in zip(commits, ("model-1.0", "model-2.0")):
        snapshot = repository(hub_dir) / "snapshots" / commit
        expected = {path.name: path.read_bytes() for path in (hub_dir.parent / source).iterdir()}
        assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == expected


def test_plain_transformers_loads_by_name_and_by_commit(pushed):
    hub_dir, commits = pushed
    assert load_bias(hub_dir) == 2.0
    assert [load_bias(hub_dir, commit) for commit in commits] == [1.0, 2.0]


def test_our_loading_finds_the_name_and_both_commits(pushed):
    hub_dir, commits = pushed
    for revision, bias in (("main", 2.0), (commits[0], 1.0)):
        source = {"hub_dir": hub_dir, "revision": revision}
        config = models.load_config(NAME, expected=("vit",), **source)
        model = models.load_pretrained(ViTForImageClassification, NAME, config=config, **source)
        assert model.classifier.bias[0].item() == bias
        assert list(models.load_image_processor(NAME, image_size=16, **source).image_mean) == [0.4978] * 3


def test_unknown_revision_is_one_line_that_names_it(pushed):
    with pytest.raises(OSError, match="'my-lab/mae-cxr', revision 'v9', could not be loaded") as error:
        models.load_config(NAME, expected=("vit",), hub_dir=pushed[0], revision="v9")
    assert "\n" not in str(error.value)


def test_hugging_faces_own_scan_lists_the_revisions_without_warnings(pushed):
    hub_dir, commits = pushed
    scan = scan_cache_dir(hub_dir)
    assert not scan.warnings
    (found,) = scan.repos
    assert (found.repo_id, found.repo_type) == (NAME, "model")
    assert {revision.commit_hash: set(revision.refs) for revision in found.revisions} == {
        commits[0]: set(),
        commits[1]: {"main"},
    }


def test_directory_can_be_moved(pushed):
    hub_dir, _ = pushed
    moved = hub_dir.parent / "elsewhere" / "hub"
    moved.parent.mkdir()
    shutil.move(hub_dir, moved)
    assert load_bias(moved) == 2.0


def test_revision_does_not_change_with_the_folder_it_was_pushed_from(pushed):
    hub_dir, commits = pushed
    shutil.rmtree(hub_dir.parent / "model-1.0")
    assert load_bias(hub_dir, commits[0]) == 1.0


@pytest.mark.parametrize("stopped", ["_store_blob", "_link_or_copy", "write_text"])
def test_interrupted_push_leaves_main_where_it_was_and_can_be_repeated(tmp_path, monkeypatch, stopped):
    hub_dir = tmp_path / "hub"
    first = push(make_model(tmp_path / "first", bias=1.0), hub_dir)
    second = make_model(tmp_path / "second", bias=2.0)
    whole, calls = getattr(hub, stopped), []

    def stop_at_the_last(*args):
        calls.append(args)
        if len(calls) == (1 if stopped == "write_text" else 3):
            raise KeyboardInterrupt
        return whole(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hub, stopped, stop_at_the_last)
        push(second, hub_dir)
    assert main_of(hub_dir) == first
    assert load_bias(hub_dir) == 1.0
    assert not [path for path in repository(hub_dir).rglob("*") if path.name.endswith((".tmp", ".old"))]
    assert not scan_cache_dir(hub_dir).warnings
    push(second, hub_dir)
    assert load_bias(hub_dir) == 2.0


def test_blob_whose_copy_was_interrupted_is_not_taken_for_whole(tmp_path, monkeypatch):
    hub_dir, model = tmp_path / "hub", make_model(tmp_path / "model", bias=1.0)

    def half(source, target):
        content = Path(source).read_bytes()
        Path(target).write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hub.shutil, "copyfile", half)
        push(model, hub_dir)
    push(model, hub_dir)
    assert load_bias(hub_dir) == 1.0


@pytest.mark.parametrize("name", ["a/b", "my-lab/mae_cxr.v2", "A1/B-2"])
def test_names_of_the_hub_are_model_ids(name):
    assert hub.MODEL_ID.fullmatch(name)


@pytest.mark.parametrize("name", ["a", "a/b/c", "../b", "a/..", "/a", "a/", "a b/c", "a/b\n"])
def test_other_names_are_not(name):
    assert not hub.MODEL_ID.fullmatch(name)

"""A run reads the training history of the model that it starts from."""

import argparse
from pathlib import Path

import pytest
from cxr.data.subsets import sample_record
from cxr.run_folder.files import read_json
from cxr.run_folder.files import write_json
from cxr.run_folder.model_fields import Stage
from cxr.run_folder.record import Sample
from cxr.sharing import local_hub
from cxr.training.history import count_seen
from cxr.training.history import read_base
from huggingface_hub.constants import HF_HUB_CACHE
from tiny_models import make_model

STAGE = {"task": "mae_pretraining", "dataset": "nih-cxr", "is_synthetic": False, "num_images": 5}
STAGE |= {"sha256": "0" * 64, "num_epochs": 2.5, "base_model": None, "base_model_revision": None}


def make_trained(folder: Path) -> Path:
    make_model(folder, bias=1.0)
    fields = read_json(folder / "config.json") | {"training_history": [STAGE]}
    write_json(folder / "config.json", fields)
    return folder


def base(name: object, *, revision: str = "main") -> tuple[list[dict], str | None]:
    names = {"model_name_or_path": name and str(name), "hub_dir": None, "model_revision": revision}
    history, commit = read_base(argparse.Namespace(**names))
    return [stage.as_json() for stage in history], commit


def test_model_of_the_hub_is_named_by_its_commit_whatever_revision_was_asked_for(tmp_path):
    options = {"hub_dir": Path(HF_HUB_CACHE), "model_id": "my-lab/base", "message": "", "tag": "v1"}
    commit = local_hub.push(make_trained(tmp_path / "model"), **options)
    for revision in ("main", "v1", commit):
        assert base("my-lab/base", revision=revision) == ([STAGE], commit)


def test_model_in_a_folder_has_a_history_only_where_it_is_one_of_ours_and_no_commit(tmp_path):
    assert base(make_trained(tmp_path / "ours")) == ([STAGE], None)
    assert base(make_model(tmp_path / "theirs", bias=1.0)) == ([], None)
    assert base(None) == ([], None)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ("nih-cxr, padchest", "nih-cxr", 2),
        ("nih-cxr", "nih-cxr, padchest", 2),
        ("nih-cxr, padchest", "nih-cxr, padchest", 4),
        ("nih-cxr", "nih-cxr", 2),
        ("nih-cxr, padchest", "other", None),
        ("other", "nih-cxr, padchest", None),
    ],
)
def test_images_seen_in_a_training_on_several_collections_are_counted(before, now, expected, tmp_path):
    samples = {}
    for datasets in (before, now):
        names = datasets.split(", ")
        ids = [f"{name}/{one}" for name in names for one in ("1", "2")] if len(names) > 1 else ["1", "2"]
        of_several = {"collections": dict.fromkeys(names, 2)} if len(names) > 1 else {}
        samples[datasets] = Sample(**sample_record(ids, seed=0), **of_several)
    write_json(tmp_path / "samples.json", samples[before].as_json())
    last = Stage(**{**STAGE, "dataset": before, "sha256": samples[before].sha256})
    folders = [tmp_path / name for name in now.split(", ")]
    for folder in folders:
        folder.mkdir()
    args = argparse.Namespace(model_name_or_path=str(tmp_path / "model"), data_dir=folders[0])
    assert count_seen(args, samples[now], last, pool=samples[now].dicom_ids) == expected

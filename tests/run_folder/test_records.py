"""The run folder: whole files or none, and nothing that was there is lost."""

import errno
import os
import stat
import sys
from pathlib import Path

import pandas as pd
import pytest
from cxr.errors import UserError
from cxr.run_folder import files
from cxr.run_folder.files import new_folder
from cxr.run_folder.files import read_json
from cxr.run_folder.files import remove_folder
from cxr.run_folder.files import write_json
from cxr.run_folder.files import write_text
from cxr.run_folder.lock import remove_leftovers
from cxr.run_folder.record import BAD_STEPS_FILE
from cxr.run_folder.record import Epoch
from cxr.run_folder.record import RunRecord
from cxr.run_folder.record import Sample
from cxr.run_folder.record import check_unchanged
from cxr.run_folder.record import installed_versions
from pydantic import ValidationError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def epoch(number: int) -> dict:
    return {"epoch": number, "step": 10 * number, "train_loss": 0.5, "eval_loss": 0.25, "auroc": None}


class Interruption(Exception):
    """A disk that fills up, a process that is stopped."""


def interrupt(*args, **kwargs):
    raise Interruption


def test_text_is_written_whole_with_unix_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "ä\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\nb\n".encode()
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("owner, name", [(Path, "replace"), (os, "fsync")])
def test_interrupted_write_leaves_the_old_file_and_no_leftovers(tmp_path, monkeypatch, owner, name):
    record = RunRecord(tmp_path, enabled=True)
    record.append_epoch(epoch(1))
    write_text(tmp_path / "a.txt", "old")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        for write in (lambda: record.append_epoch(epoch(2)), lambda: write_text(tmp_path / "a.txt", "new")):
            with pytest.raises(Interruption):
                write()
    assert record.epochs() == [epoch(1)]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["a.txt", "metrics.jsonl"]


def test_records_refuse_nan_and_leave_the_old_file(tmp_path):
    record = RunRecord(tmp_path, enabled=True)
    record.write("line.json", Epoch(**epoch(1)))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="finite"):
            record.write("line.json", Epoch(**epoch(1) | {"eval_loss": value}))
        with pytest.raises(ValidationError, match="finite"):
            record.append_epoch(epoch(1) | {"train_loss": value})
    assert Epoch.read(tmp_path / "line.json").as_json() == epoch(1)
    assert names(tmp_path) == ["line.json"] and record.epochs() == []


def test_new_folder_appears_only_when_it_is_filled_and_replaces_all_of_an_old_one(tmp_path):
    for name in ("old", "new"):
        with new_folder(tmp_path / "model") as folder:
            (folder / name).write_text("1", encoding="utf-8")
            assert (tmp_path / "model").exists() == (name == "new")
        assert names(tmp_path) == ["model"] and names(tmp_path / "model") == [name]


@pytest.mark.parametrize("is_filled", [False, True])
def test_new_folder_interrupted_before_or_at_its_renaming_leaves_the_old_one(
    tmp_path, monkeypatch, is_filled
):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("0", encoding="utf-8")
    rename = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: interrupt() if self.suffix == ".tmp" else rename(self, to)
    )
    with pytest.raises(Interruption), new_folder(tmp_path / "model") as folder:
        (folder / "new").write_text("1", encoding="utf-8")
        if not is_filled:
            raise Interruption
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]


def test_folder_that_is_being_removed_has_lost_its_name(tmp_path, monkeypatch):
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "file").write_text("1", encoding="utf-8")
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(files.shutil, "rmtree", interrupt)
        remove_folder(tmp_path / "step_1")
    assert names(tmp_path) == [".step_1.tmp"]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_images_of_bad_steps_are_private(tmp_path):
    record = RunRecord(tmp_path, enabled=True)
    record.append_bad_step(3, ["a", "b"])
    record.append_bad_step(12, ["c"])
    path = tmp_path / BAD_STEPS_FILE
    assert path.read_text(encoding="utf-8").splitlines() == [
        '{"step": 3, "dicom_ids": ["a", "b"]}',
        '{"step": 12, "dicom_ids": ["c"]}',
    ]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_predictions_have_their_columns_and_are_readable_by_the_owner_alone(tmp_path):
    record = RunRecord(tmp_path, enabled=True)
    images = {"dicom_id": ["a", "b"], "subject_id": [7, 8], "view_position": ["AP", ""]}
    table = pd.DataFrame({**images, "label": [1, 0], "probability": [1 / 3, 1e-12]})
    record.write_predictions("predictions_test.csv", table)
    path = tmp_path / "predictions_test.csv"
    assert path.read_text(encoding="utf-8").splitlines() == [
        "dicom_id,subject_id,view_position,label,probability",
        "a,7,AP,1,0.3333333333333333",
        "b,8,,0,1e-12",
    ]
    assert names(tmp_path) == ["predictions_test.csv"]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_interrupted_predictions_leave_the_old_file_and_no_leftovers(tmp_path):
    record = RunRecord(tmp_path, enabled=True)
    table = pd.DataFrame({"dicom_id": ["a"], "label": [1], "probability": [0.5]})
    record.write_predictions("predictions_test.csv", table)
    before = (tmp_path / "predictions_test.csv").read_bytes()

    class Interrupted(pd.DataFrame):
        def to_csv(self, *args, **options):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.write_predictions("predictions_test.csv", Interrupted(table))
    assert (tmp_path / "predictions_test.csv").read_bytes() == before
    assert names(tmp_path) == ["predictions_test.csv"]


def test_other_processes_write_nothing(tmp_path):
    record = RunRecord(tmp_path, enabled=False)
    record.write("results.json", {})
    record.append_epoch(epoch(1))
    table = pd.DataFrame({"dicom_id": ["a"], "label": [1], "probability": [0.5]})
    record.write_predictions("predictions_test.csv", table)
    assert names(tmp_path) == []


def test_versions_are_those_of_the_installed_libraries():
    import torch

    versions = installed_versions()
    assert set(versions) >= {"torch", "transformers", "accelerate", "datasets"}
    assert torch.__version__.startswith(versions["torch"].split("+")[0])


def test_json_is_read_and_an_absent_file_is_an_empty_object(tmp_path):
    write_json(tmp_path / "a.json", {"loss": 0.5, "best": None})
    assert read_json(tmp_path / "a.json") == {"loss": 0.5, "best": None}
    assert read_json(tmp_path / "b.json") == {}


@pytest.mark.parametrize(
    ("text", "found"), [('{"a": ', "damaged JSON"), ("", "damaged JSON"), ("[1]", "a list")]
)
def test_json_that_no_run_wrote_is_refused_with_its_name(tmp_path, text, found):
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"results\.json: found {found}.*that a run wrote; restore it from"):
        read_json(tmp_path / "results.json")


def test_same_flags_are_unchanged_and_others_of_the_run_do_not_matter(tmp_path):
    before = {"seed": 0, "learning_rate": 1e-6, "weight_decay": 0.01, "max_train_samples": None}
    check_unchanged(before, {"seed": 0, "learning_rate": 0.000001}, where=tmp_path)
    check_unchanged(before, {"max_train_samples": None, "cache_dir": None}, where=tmp_path)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"seed": 1}, "--seed: found 1, but RUN began with 0"),
        ({"view": "all", "seed": 0}, "--view: found all, but RUN began with None"),
    ],
)
def test_changed_flag_is_refused_with_both_values(now, message):
    with pytest.raises(ValueError, match=f"{message}; use the same flags, or start again in another"):
        check_unchanged({"seed": 0}, now, where=Path("RUN"))


def test_private_file_of_another_user_is_one_line(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"samples\.json: cannot be read \(Permission denied\); make it"):
        Sample.read(tmp_path / "samples.json")

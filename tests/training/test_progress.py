"""The progress of a run: its mean loss so far, and which folders are checkpoints to continue from."""

import math

from cxr.run_folder.files import write_json
from cxr.run_folder.record import PROGRESS_FILE
from cxr.training.progress import Progress
from cxr.training.progress import complete_checkpoints
from cxr.training.progress import has_checkpoint

STEP = {"images_per_step": 8}


def test_nan_and_infinite_losses_are_counted_by_step_and_not_averaged():
    progress = Progress(**STEP, step=2)
    assert progress.add_losses([1.0, 2.0]) == []
    progress.step = 5
    assert progress.add_losses([float("nan"), 3.0, float("inf")]) == [3, 5]
    assert (progress.train_loss, progress.num_losses, progress.num_bad_steps) == (2.0, 3, 2)
    progress.start_epoch()
    assert math.isnan(progress.train_loss) and progress.num_bad_steps == 2


def test_sum_of_losses_does_not_depend_on_how_often_they_are_read():
    losses = [0.1 * number for number in range(1, 20)]
    at_once, in_parts = Progress(**STEP, step=19), Progress(**STEP, step=0)
    at_once.add_losses(losses)
    for first in (0, 5, 10, 15):
        in_parts.step = first + len(losses[first : first + 5])
        in_parts.add_losses(losses[first : first + 5])
    assert in_parts == at_once


def test_only_a_complete_checkpoint_counts_and_all_who_ask_get_the_same_answer(tmp_path, caplog):
    folder, sound = tmp_path / "checkpoints", Progress(**STEP, step=10).as_json()
    contents = {".step_20.tmp": sound, "step_10_keep_this": sound, "step_10": {"step": 10}, "step_30": None}
    assert not has_checkpoint(tmp_path)
    for name, content in contents.items():
        (folder / name).mkdir(parents=True)
        if content is not None:
            write_json(folder / name / PROGRESS_FILE, content)
        assert not has_checkpoint(tmp_path) and complete_checkpoints(folder) == []
    assert "Skipped: " in caplog.text and "step_10" in caplog.text
    write_json(folder / "step_10" / PROGRESS_FILE, sound)
    assert has_checkpoint(tmp_path) and complete_checkpoints(folder) == [folder / "step_10"]

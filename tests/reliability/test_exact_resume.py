"""An interrupted run is the uninterrupted run: stopped after any step, resumed, and equal bit by bit."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import run_classification
import run_mae_pretrain
from cxr.training import run as training_run
from cxr.training.preemption import Preemption
from equal_runs import assert_equal
from equal_runs import without_times
from tiny_runs import TINY_RESNET
from tiny_runs import TINY_VIT
from tiny_runs import read_epochs
from tiny_runs import run_main

# Two epochs of five steps, of which the checkpoints of the epochs save the fifth and the tenth.
SHORT = ["--num_train_epochs=2", "--max_train_samples=40", "--learning_rate=1e-3", "--warmup_ratio=0.2"]
ACCUMULATED = ["--per_device_train_batch_size=4", "--gradient_accumulation_steps=2"]
WHOLE = ["--per_device_train_batch_size=8"]
RECIPE = ["--recipe=mae", "--images_per_step=8", "--per_device_train_batch_size=4"]
# Dropout draws from the running generator, which is in the checkpoint.
DROPOUT = [TINY_VIT[0], TINY_VIT[1] + ",hidden_dropout_prob=0.1", TINY_VIT[2]]
AUGMENTED = ["--augmentation=mae", "--random_erasing_prob=0.5"]
# The parts of today's fine-tuning. Drop path draws from the running generator, too.
MIXED = ["--mixup=0.8", "--cutmix=1", "--label_smoothing=0.1", "--layer_decay=0.75", "--ema_decay=0.9"]
MIXED += ["--augmentation=mae", "--randaugment=rand-m6-mstd0.5-inc1", "--min_learning_rate=1e-5"]
PARTS = [*MIXED, "--drop_path=0.3", "--warmup_epochs=0.6", "--early_stopping_patience=9"]
MASKED, WORKERS = ["--mask_ratio=0.5", "--max_grad_norm=1"], ["--dataloader_num_workers=2"]

RUNS = {
    "pretraining": (run_mae_pretrain, [*TINY_VIT, *ACCUMULATED]),
    "pretraining with workers": (run_mae_pretrain, [*TINY_VIT, *WHOLE, *WORKERS]),
    "ViT": (run_classification, [*DROPOUT, *ACCUMULATED, *AUGMENTED, "--mask_ratio=0.25"]),
    "ViT with workers": (run_classification, [*TINY_VIT, *WHOLE, *AUGMENTED, *MASKED, *WORKERS]),
    "recipe": (run_classification, [*TINY_VIT, *RECIPE]),
    "ResNet": (run_classification, [*TINY_RESNET, *WHOLE, "--augmentation=classic"]),
    "ViT with all parts": (run_classification, [*TINY_VIT, *ACCUMULATED, *PARTS]),
    "ResNet with all parts": (run_classification, [*TINY_RESNET, *WHOLE, *PARTS]),
}


def stop_after(script, output_dir: Path, step: int, *flags: object) -> None:
    """Calls `script.main` as if the batch system had asked for its end within that step."""

    class Asked(Preemption):
        def __init__(self, accelerator):
            super().__init__(accelerator)
            self.steps_left = step

        def requested(self) -> bool:
            self.steps_left -= 1
            if self.steps_left == 0:
                self._note(15, None)
            return super().requested()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "Preemption", Asked)
        try:
            run_main(script, output_dir, *flags)
        except SystemExit as ended:  # pytest.raises would keep the run's frames, and with them its lock
            assert ended.code == 143
        else:
            pytest.fail("the run was not stopped")


@pytest.mark.parametrize("name", ["pretraining", "ViT"])
def test_run_stopped_twice_and_resumed_equals_the_uninterrupted_one(name, sample_root, tmp_path):
    # In the middle of the first epoch, and of the second, after step 8.
    assert_equal_after_stops(name, (3, 5), sample_root, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_run_stopped_after_every_step_equals_the_uninterrupted_one(name, sample_root, tmp_path):
    assert_equal_after_stops(name, [1] * 10, sample_root, tmp_path)


def assert_equal_after_stops(name: str, steps: Iterable[int], sample_root: Path, tmp_path: Path) -> None:
    """Stops a run after that many steps, resumes it, stops it after the next, and compares its end."""
    script, flags = RUNS[name]
    flags = [*flags, *SHORT, f"--data_dir={sample_root}"]
    whole = run_main(script, tmp_path / "whole", *flags)
    resume = []
    for number in steps:
        stop_after(script, tmp_path / "resumed", number, *flags, *resume)
        resume = ["--resume_from_checkpoint=latest"]
    resumed = run_main(script, tmp_path / "resumed", *flags, *resume)
    assert without_times(resumed) == without_times(whole)
    assert_equal(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("model", [TINY_VIT, TINY_RESNET], ids=["ViT", "ResNet"])
def test_run_with_all_parts_in_bf16_is_near_float32_and_resumes(model, sample_root, tmp_path, monkeypatch):
    flags = [*model, *WHOLE, *PARTS, *SHORT, f"--data_dir={sample_root}"]
    run_main(run_classification, tmp_path / "exact", *flags)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    whole = run_main(run_classification, tmp_path / "whole", *flags)
    assert whole["mixed_precision"] == "bf16"
    exact, rounded = (read_epochs(tmp_path / name)[0]["train_loss"] for name in ("exact", "whole"))
    assert rounded == pytest.approx(exact, rel=0.03)  # later, batch normalisation of few images differs more
    stop_after(run_classification, tmp_path / "resumed", 3, *flags)
    run_main(run_classification, tmp_path / "resumed", *flags, "--resume_from_checkpoint=latest")
    assert_equal(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.slow
def test_run_that_stopped_early_stops_there_again_when_resumed(sample_root, tmp_path):
    flags = [*TINY_VIT, *WHOLE, *MIXED, *SHORT, "--num_train_epochs=30", "--early_stopping_patience=2"]
    flags += [f"--data_dir={sample_root}"]
    whole = run_main(run_classification, tmp_path / "whole", *flags)
    assert whole["steps"] == 5 * (whole["best_epoch"] + 2) < 150
    for step in (3, whole["steps"] - 4):  # in the first epoch, and in the last one
        flags_of_this = flags if step == 3 else [*flags, "--resume_from_checkpoint=latest"]
        stop_after(run_classification, tmp_path / "resumed", step, *flags_of_this)
    for _ in range(2):  # a finished run ends again in the same way
        resumed = run_main(
            run_classification, tmp_path / "resumed", *flags, "--resume_from_checkpoint=latest"
        )
        assert without_times(resumed) == without_times(whole)
    assert read_epochs(tmp_path / "resumed") == read_epochs(tmp_path / "whole")


@pytest.mark.parametrize(
    "script", [run_classification, pytest.param(run_mae_pretrain, marks=pytest.mark.slow)]
)
def test_workers_do_not_change_a_run(script, sample_root, tmp_path):
    flags = [*TINY_VIT, *WHOLE, *SHORT, f"--data_dir={sample_root}"]
    for workers in (0, 2):
        run_main(script, tmp_path / str(workers), *flags, f"--dataloader_num_workers={workers}")
    assert_equal(tmp_path / "2", tmp_path / "0")


@pytest.mark.slow
def test_accumulation_does_not_change_the_losses_of_a_run(sample_root, tmp_path):
    for name, batches in {"whole": WHOLE, "accumulated": ACCUMULATED}.items():
        flags = [*TINY_VIT, *batches, *SHORT, f"--data_dir={sample_root}"]
        run_main(run_mae_pretrain, tmp_path / name, *flags)
    whole, accumulated = (read_epochs(tmp_path / name) for name in ("whole", "accumulated"))
    for before, after in zip(whole, accumulated, strict=True):
        assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.slow
def test_accumulation_does_not_change_a_run_with_all_parts_but_drop_path(sample_root, tmp_path):
    flags = [*TINY_VIT, *MIXED, "--warmup_epochs=0.6", "--num_train_epochs=5", "--learning_rate=1e-3"]
    flags += [f"--data_dir={sample_root}"]
    for accumulated, batch_size in ((1, 32), (4, 8)):
        batch = [
            f"--gradient_accumulation_steps={accumulated}",
            f"--per_device_train_batch_size={batch_size}",
        ]
        run_main(run_classification, tmp_path / str(accumulated), *flags, *batch)
    whole, accumulated = (read_epochs(tmp_path / name) for name in ("1", "4"))
    for before, after in zip(whole, accumulated, strict=True):
        for name in ("train_loss", "eval_loss"):
            assert after[name] == pytest.approx(before[name], rel=1e-4)


def test_stopped_run_that_had_no_checkpoint_yet_starts_again_in_its_folder(sample_root, tmp_path):
    flags = [*TINY_VIT, *WHOLE, *SHORT, f"--data_dir={sample_root}"]
    whole = run_main(run_mae_pretrain, tmp_path / "whole", *flags)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_mae_pretrain, "evaluate", die)
        run_main(run_mae_pretrain, tmp_path / "resumed", *flags)
    resumed = run_main(run_mae_pretrain, tmp_path / "resumed", *flags, "--resume_from_checkpoint=latest")
    assert without_times(resumed) == without_times(whole)
    assert_equal(tmp_path / "resumed", tmp_path / "whole")

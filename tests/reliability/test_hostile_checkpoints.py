"""Checkpoints and records, damaged or edited: resumed rightly or refused in one line; no code runs."""

import itertools
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import run_classification
import run_mae_pretrain
import torch
from accelerate import Accelerator
from cxr.errors import UserError
from cxr.training import checkpoints
from equal_runs import without_times
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import read_epochs
from tiny_runs import read_results
from tiny_runs import run_main

STEP = {"images_per_step": 8}


class Code:
    """What a pickle may hold: it makes a file where it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run of one step of a tiny model, with its checkpoint."""
    output_dir = tmp_path_factory.mktemp("saved")
    accelerator, model, optimizer = prepared()
    accelerator.backward(model(torch.ones(4, 3)).square().mean())
    optimizer.step()
    progress = checkpoints.Progress(**STEP, step=1, loss_sum=0.5, num_losses=1)
    checkpoints.save_checkpoint(accelerator, output_dir, progress, total_limit=1)
    return output_dir


def prepared():
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return accelerator, *accelerator.prepare(model, torch.optim.AdamW(model.parameters()))


def sign(checkpoint: Path) -> None:
    """Makes the checksums those of the files, so that what reads them is tested, too."""
    checkpoints.files.write_json(checkpoint / checkpoints.CHECKSUMS_FILE, checkpoints._checksums(checkpoint))


def resume(output_dir: Path) -> checkpoints.Progress:
    accelerator, _, optimizer = prepared()
    return checkpoints.resume(accelerator, optimizer, output_dir, "latest", **STEP)


@st.composite
def damage(draw, content: bytes) -> bytes:
    """Cut, with bytes changed, replaced by others, or with bytes behind it."""
    kind = draw(st.sampled_from(["cut", "change", "replace", "append"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "replace":
        return draw(st.binary(max_size=200))
    if kind == "append":
        return content + draw(st.binary(min_size=1, max_size=200))
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


def many(*, examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def copy_saved(saved, tmp_path):
    """Returns a function that makes a new copy of the saved run."""
    numbers = itertools.count()
    return lambda: Path(shutil.copytree(saved, tmp_path / f"run-{next(numbers)}"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl"])
def test_damaged_file_is_refused_in_one_line_that_names_it(name, copy_saved):
    folder = copy_saved()
    path = folder / "checkpoints" / "step_1" / name
    content = path.read_bytes()

    @many(examples=100)
    @given(damage(content).filter(lambda damaged: damaged != content))
    def check(damaged: bytes) -> None:
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"step_1.*{name} changed since it was saved"):
            resume(folder)

    check()


@pytest.mark.slow
def test_optimizer_cut_short_is_refused_even_if_its_checksum_fits(copy_saved):
    folder = copy_saved()
    path = folder / "checkpoints" / "step_1" / "optimizer.bin"
    content = path.read_bytes()

    @many(examples=100)
    @given(st.integers(0, len(content) - 1))
    def check(length: int) -> None:
        path.write_bytes(content[:length])
        sign(path.parent)
        with pytest.raises(UserError, match=r"step_1.*resume from an older one"):
            resume(folder)

    check()


def test_progress_cut_short_anywhere_is_left_aside(copy_saved, caplog):
    folder = copy_saved()
    path = folder / "checkpoints" / "step_1" / "progress.json"
    content = path.read_bytes().rstrip()
    for length in range(0, len(content), 10):
        path.write_bytes(content[:length])
        caplog.clear()
        assert resume(folder).step == 0
        assert f"Skipped: {path}" in caplog.text


@pytest.mark.parametrize(
    ("edit", "step"),
    [
        ({"step": 7}, 7),
        ({"loss_sum": 3}, 1),
        ({"step": -1}, 0),
        ({"step": 1.5}, 0),
        ({"step": True}, 0),
        ({"step": 10**400}, 0),
        ({"num_losses": None}, 0),
        ({"loss_sum": "x"}, 0),
        ({"loss_sum": float("nan")}, 0),
        ({"loss_sum": float("inf")}, 0),
        ({"images_per_step": [8]}, 0),
        ({"best": {"epoch": {}}}, 0),
    ],
    ids=str,
)
def test_edited_progress_is_taken_if_it_can_be_one_and_left_aside_if_not(edit, step, copy_saved):
    folder = copy_saved()
    path = folder / "checkpoints" / "step_1" / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **edit}), encoding="utf-8")
    assert resume(folder).step == step


def test_checkpoint_of_other_steps_is_refused_in_one_line(copy_saved):
    folder = copy_saved()
    path = folder / "checkpoints" / "step_1" / "progress.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"images_per_step": 8', '"images_per_step": 16'), encoding="utf-8")
    with pytest.raises(UserError, match="step_1"):
        resume(folder)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "save", [lambda value, file: torch.save(value, file), pickle.dump], ids=["torch", "pickle"]
)
def test_code_in_a_checkpoint_never_runs(name, save, copy_saved, tmp_path):
    checkpoint, marker = copy_saved() / "checkpoints" / "step_1", tmp_path / "it-ran"
    with (checkpoint / name).open("wb") as file:
        save({"state": Code(marker)}, file)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    sign(checkpoint)
    if name == "random_states_0.pkl":  # which a resume does not need
        assert resume(checkpoint.parents[1]).step == 1
    else:
        with pytest.raises(UserError, match="step_1"):
            resume(checkpoint.parents[1])
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin"])
def test_checkpoint_of_another_shape_is_refused(name, copy_saved):
    folder = copy_saved()
    path = folder / "checkpoints" / "step_1" / name
    if name == "optimizer.bin":
        state = torch.load(path, weights_only=True)
        state["state"][0]["exp_avg"] = torch.zeros(5)
        torch.save(state, path)
    else:
        save_file({"weight": torch.zeros(5, 3), "bias": torch.zeros(5)}, path)
    with pytest.raises(UserError, match=r"(?s)step_1.*resume from an older one"):
        resume(folder)


@pytest.fixture(scope="module", params=[run_mae_pretrain, run_classification])
def finished(request, sample_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    flags = [*TINY_VIT, *QUICK, "--max_train_steps=2", f"--data_dir={sample_root}"]
    run_main(request.param, folder, *flags)
    return request.param, folder, [*flags, "--resume_from_checkpoint=latest"]


QUICK_TEXTS = {"a cut object": "{", "another object": '{"a": 1}'}
TEXTS = {
    "nothing": "",
    "a list": "[]",
    "null": "null",
    "a text": '"\\u0000"',
    "a number for a hash": '{"sha256": 5}',
    "an object for a number": '{"step": {}}',
    "endless brackets": "[" * 10**5,
    "no UTF-8": "\ud800",
}
EDITS = [
    *(pytest.param(text, id=name) for name, text in QUICK_TEXTS.items()),
    *(pytest.param(text, id=name, marks=pytest.mark.slow) for name, text in TEXTS.items()),
]


@pytest.mark.parametrize("name", ["args.json", "samples.json"])
@pytest.mark.parametrize("text", EDITS)
def test_edited_record_of_what_a_run_is_refuses_the_resume_in_one_line(name, text, finished, tmp_path):
    script, folder, flags = finished
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "run"))):
        run_main(script, tmp_path / "run", *flags)


@pytest.mark.parametrize("name", ["metrics.jsonl", "results.json"])
@pytest.mark.parametrize("text", EDITS)
def test_edited_record_of_what_a_run_measured_is_written_anew(name, text, finished, tmp_path):
    script, folder, flags = finished
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert without_times(run_main(script, tmp_path / "run", *flags)) == without_times(read_results(folder))
    assert read_epochs(tmp_path / "run") == read_epochs(folder)

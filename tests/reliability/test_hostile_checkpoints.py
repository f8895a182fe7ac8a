"""Checkpoints and records, damaged or edited: resumed rightly or refused in one line; no code runs."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import run_classification
import run_mae_pretrain
import torch
from accelerate import Accelerator
from cxr.training import checkpoints
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import run_main

STEP = {"images_per_step": 8}
FILES = ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json")


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
    checkpoints.write_json(checkpoint / checkpoints.CHECKSUMS_FILE, checkpoints._checksums(checkpoint))


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


@pytest.mark.slow
@settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_damaged_optimizer_whose_checksum_fits_is_loaded_or_refused(data, saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    path = folder / "checkpoints" / "step_1" / "optimizer.bin"
    path.write_bytes(data.draw(damage(path.read_bytes())))
    sign(path.parent)
    try:
        assert resume(folder).step == 1
    except ValueError as error:
        assert "resume from an older one" in str(error)
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoint_is_refused_in_one_line_or_left_aside(name, saved, tmp_path_factory):
    content = (saved / "checkpoints" / "step_1" / name).read_bytes()

    @settings(
        max_examples=100,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damage(content))
    def check(damaged: bytes) -> None:
        folder = tmp_path_factory.mktemp("damaged")
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        (folder / "checkpoints" / "step_1" / name).write_bytes(damaged)
        try:
            progress = resume(folder)
            # Another text of the same progress, or no checkpoint at all.
            assert damaged == content or (name == "progress.json" and progress.step in (0, 1))
        except ValueError as error:
            assert name != "progress.json"
            assert f"step_1: does not load ({name} changed since it was saved)" in str(error)
        shutil.rmtree(folder)

    check()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(name=st.sampled_from(["images_per_step", "step", "loss_sum", "num_losses", "best"]), value=JSON)
def test_edited_progress_resumes_or_is_refused_in_one_line(saved, tmp_path_factory, name, value):
    folder = tmp_path_factory.mktemp("edited")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    path = folder / "checkpoints" / "step_1" / "progress.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, name: value}), encoding="utf-8")
    try:
        progress = resume(folder)
        assert progress.step >= 0 and progress.images_per_step == 8
        if progress.best:
            run_classification.is_better({"auroc": 0.5, "eval_loss": 0.5}, progress.best)
    except ValueError as error:
        assert str(folder) in str(error)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "save", [lambda value, file: torch.save(value, file), pickle.dump], ids=["torch", "pickle"]
)
def test_code_in_a_checkpoint_never_runs(name, save, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    checkpoint, marker = tmp_path / "run" / "checkpoints" / "step_1", tmp_path / "it-ran"
    with (checkpoint / name).open("wb") as file:
        save({"state": Code(marker)}, file)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    sign(checkpoint)
    try:
        resume(tmp_path / "run")
    except ValueError as error:
        assert "does not load" in str(error)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin"])
def test_checkpoint_of_another_shape_is_refused(name, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step_1" / name
    if name == "optimizer.bin":
        state = torch.load(path, weights_only=True)
        state["state"][0]["exp_avg"] = torch.zeros(5)
        torch.save(state, path)
    else:
        save_file({"weight": torch.zeros(5, 3), "bias": torch.zeros(5)}, path)
    with pytest.raises(
        ValueError, match=r"(?s)step_1: does not load .*expected a whole checkpoint of this model"
    ):
        resume(tmp_path / "run")


@pytest.fixture(scope="module", params=[run_mae_pretrain, run_classification])
def finished(request, sample_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    flags = [*TINY_VIT, *QUICK, "--max_train_steps=2", f"--data_dir={sample_root}"]
    run_main(request.param, folder, *flags)
    return request.param, folder, [*flags, "--resume_from_checkpoint=latest"]


@pytest.mark.parametrize("name", ["args.json", "samples.json", "metrics.jsonl", "results.json"])
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"a": 1}', '{"sha256": 5}', '{"step": {}}', "[" * 10**5, "\ud800", '"\\u0000"'],
)
def test_edited_records_of_a_run_are_refused_in_one_line_or_written_anew(name, text, finished, tmp_path):
    script, folder, flags = finished
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        results = run_main(script, tmp_path / "run", *flags)
        assert results["steps"] == 2
    except (ValueError, OSError) as error:
        assert str(tmp_path / "run") in str(error)

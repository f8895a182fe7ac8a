"""Hostile and damaged files given to convert_checkpoint.py: refused in one line; no code runs, no folder."""

import argparse
import os
import pickle

import convert_checkpoint
import published_files as files
import pytest
import torch
from cxr.errors import UserError
from cxr.models.published import read_checkpoint
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from refused import refused
from safetensors.torch import save_file


class Command:
    """A pickle of it runs a command when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Settings(argparse.Namespace):
    """Looks like the flags of a training, and is another class."""


def refuse(file, tmp_path, capsys) -> str:
    message = refused(convert_checkpoint.main, [file, tmp_path / "out", *files.HEADS_FLAGS], capsys)
    assert not (tmp_path / "out").exists() and not (tmp_path / "marker").exists()
    return message


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".tar"])
def test_code_of_a_pickle_is_named_and_not_run(suffix, tmp_path, capsys):
    file, code = tmp_path / f"x{suffix}", Command(tmp_path / "marker")
    contents = {
        "in place of a checkpoint": code,
        "beside the weights": {"model": files.encoder_tensors(), "optimizer": code},
        "in the flags": {"model": files.encoder_tensors(), "args": argparse.Namespace(x=code)},
        "in place of a weight": {"model": files.encoder_tensors() | {"norm.bias": code}},
    }
    for content in contents.values():
        torch.save(content, file)
        assert "system, which is code and was not run" in refuse(file, tmp_path, capsys)
        file.write_bytes(pickle.dumps(content))  # without torch's archive
        refuse(file, tmp_path, capsys)


@pytest.mark.parametrize("content", [Settings(a=1), torch.nn.Linear(2, 2), torch.Generator, print])
def test_classes_other_than_namespace_are_refused(content, tmp_path, capsys):
    torch.save({"model": files.encoder_tensors(), "args": content}, tmp_path / "x.pth")
    assert "which is code and was not run" in refuse(tmp_path / "x.pth", tmp_path, capsys)


def test_namespace_is_allowed_for_this_reading_only(tmp_path):
    file = files.save_checkpoint(tmp_path / "x.pth", files.encoder_tensors(), model="x")
    assert read_checkpoint(file).settings == {"model": "x"}
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(file, weights_only=True)


TENSORS = files.encoder_tensors()
STRANGE = {
    "a list": [1, 2],
    "a tensor": torch.ones(3),
    "nothing": {},
    "no tensors": {"model": {}},
    "a text for a tensor": {"model": TENSORS | {"norm.bias": "x"}},
    "a number for a name": {"model": TENSORS | {3: torch.ones(3)}},
    "a sparse tensor": {"model": TENSORS | {"norm.bias": torch.ones(24).to_sparse()}},
    "a tensor without values": {"model": TENSORS | {"norm.bias": torch.ones(24, device="meta")}},
    "a complex tensor": {"model": TENSORS | {"norm.bias": torch.ones(24, dtype=torch.complex64)}},
    "weights of weights": {"model": {"model": TENSORS}},
    "a huge view of one number": {"model": TENSORS | {"norm.bias": torch.ones(1).expand(2**40)}},
    "a width of a huge view": {
        "model": TENSORS | {"patch_embed.proj.weight": torch.ones(1).expand(2**33, 3, 8, 8)}
    },
    "a huge number of tokens": {"model": TENSORS | {"pos_embed": torch.ones(1).expand(1, 2**40 + 1, 24)}},
    "many blocks": {"model": TENSORS | {f"blocks.{n}.norm1.bias": torch.ones(24) for n in range(2000)}},
    "an empty width": {"model": TENSORS | {"patch_embed.proj.weight": torch.ones(0, 3, 8, 8)}},
    "a patch of no pixels": {"model": TENSORS | {"patch_embed.proj.weight": torch.ones(24, 3, 0, 0)}},
    "a stage in the tens": {"model": {"layer1.0.conv1.weight": torch.ones(3), "layer9.0.x": torch.ones(3)}},
    "strange flags": {"model": {}, "args": argparse.Namespace(dataset=[], model={}, mask_ratio="x")},
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_content_is_refused(case, tmp_path, capsys):
    torch.save(STRANGE[case], tmp_path / "x.pth")
    refuse(tmp_path / "x.pth", tmp_path, capsys)


def test_strange_flags_of_a_training_are_ignored(tmp_path):
    flags = {"dataset": [], "model": {}, "mask_ratio": "x", "norm_pix_loss": 3, "datasets": None}
    file = files.save_checkpoint(tmp_path / "x.pth", TENSORS, **flags)
    convert_checkpoint.main([str(file), str(tmp_path / "out"), *files.HEADS_FLAGS])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"weights", "found a name that ends in .txt, expected one of .pth, "),
        ("x", b"weights", "found a name that ends in nothing"),
        ("x.pth", b"", "found a file that cannot be read"),
        ("x.pth", b"<html>Not found</html>", "found a file that cannot be read"),
        ("x.safetensors", b"", "found a file that cannot be read"),
        ("x.safetensors", b"\xff" * 64, "found a file that cannot be read"),
    ],
)
def test_files_of_another_kind_are_refused(name, content, message, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert message in refuse(tmp_path / name, tmp_path, capsys)


def test_a_missing_file_and_a_folder_are_refused(tmp_path, capsys):
    assert "x.pth: found no such file" in refuse(tmp_path / "x.pth", tmp_path, capsys)
    assert ": found a folder" in refuse(tmp_path, tmp_path, capsys)


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contents")
    files.save_checkpoint(folder / "x.pth", TENSORS, model="x")
    save_file(TENSORS, folder / "x.safetensors")
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_damaged_files_are_read_or_refused(contents, tmp_path, data, suffix):
    content = bytearray(contents[suffix])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + 8] = data.draw(st.binary(min_size=1, max_size=8))
    (tmp_path / f"x{suffix}").write_bytes(content)
    try:
        tensors = read_checkpoint(tmp_path / f"x{suffix}").tensors
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(values, torch.Tensor) for values in tensors.values())

"""Killed at each of its operations on files, no command of the hub loses or half-shows anything."""

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cxr.sharing import local_hub
from killing import start_forkserver
from killing import watch_operations
from safetensors.numpy import save_file

NAME = "my-lab/cxr"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")]


def make_model(folder: Path, number: int) -> Path:
    """Files that are pushed as a model's; what is in them does not matter here."""
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "README.md").write_text(f"# Model {number}\n", encoding="utf-8")
    save_file({}, folder / "model.safetensors", metadata={"number": str(number)})
    return folder


@pytest.fixture
def hub_dir(tmp_path) -> Path:
    """Two revisions that main and the tag v1 mean, and two later ones that nothing leads to."""
    where = {"hub_dir": tmp_path / "hub", "model_id": NAME}
    for number in range(5):
        model = make_model(tmp_path / f"model-{number}", number)
        if number < 4:
            local_hub.push(model, **where, message=str(number), tag="v1" if number == 0 else None)
    back = local_hub.read_log(tmp_path / "hub", NAME)[2].commit
    (local_hub.repository_dir(tmp_path / "hub", NAME) / "refs" / "main").write_text(back, encoding="utf-8")
    return tmp_path / "hub"


def push(hub_dir: Path) -> None:
    local_hub.push(hub_dir.parent / "model-4", hub_dir=hub_dir, model_id=NAME, message="4", tag="v2")


def collect_garbage(hub_dir: Path) -> None:
    local_hub.collect_garbage(hub_dir, NAME)


def set_tag(hub_dir: Path) -> None:
    local_hub.set_tag(hub_dir, NAME, "v2", "main")


def messages(hub_dir: Path, revision: str = "main") -> list[str]:
    return [commit.message for commit in local_hub.read_log(hub_dir, NAME, revision)]


def run(call: Callable[[Path], None], hub_dir: Path, kill_at: int | None, counted: Path | None) -> None:
    count = watch_operations(hub_dir, kill_at=kill_at)
    call(hub_dir)
    if counted:
        counted.write_text(str(count()), encoding="utf-8")


@pytest.fixture(scope="module")
def processes():
    """Processes that start with everything imported."""
    return start_forkserver("cxr.sharing.local_hub", "test_hub_kills")


@pytest.mark.parametrize("call", [push, collect_garbage, set_tag])
def test_command_killed_at_any_operation_shows_nothing_half_and_can_be_repeated(
    call, processes, hub_dir, tmp_path
):
    untouched = shutil.copytree(hub_dir, tmp_path / "untouched", symlinks=True)
    process = processes.Process(target=run, args=(call, hub_dir, None, tmp_path / "counted"))
    process.start()
    process.join()
    expected = messages(hub_dir)
    num_operations = int((tmp_path / "counted").read_text(encoding="utf-8"))
    assert num_operations > 5
    for kill_at in range(1, num_operations + 1):
        shutil.rmtree(hub_dir)
        shutil.copytree(untouched, hub_dir, symlinks=True)
        process = processes.Process(target=run, args=(call, hub_dir, kill_at, None))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert local_hub.find_problems(hub_dir, NAME) == []
        assert messages(hub_dir) in (["1", "0"], expected) and messages(hub_dir, "v1") == ["0"]
        call(hub_dir)
        assert messages(hub_dir) == expected and messages(hub_dir, "v1") == ["0"]
        local_hub.collect_garbage(hub_dir, NAME)
        assert local_hub.find_problems(hub_dir, NAME) == []
        assert len(list(hub_dir.glob("models--*/snapshots/*"))) == len(expected)
        assert len(list(hub_dir.glob("models--*/blobs/*"))) == 1 + 2 * len(expected)
        assert not list(hub_dir.glob("models--*/*/.*"))
    print(f"{call.__name__}: killed at each of {num_operations} operations")


def test_pusher_that_is_killed_leaves_another_at_work_alone(processes, hub_dir, tmp_path):
    others = [make_model(tmp_path / f"other-{number}", 10 + number) for number in range(20)]
    for kill_at, other in enumerate(others, start=1):
        killed = processes.Process(target=run, args=(push, hub_dir, 3 * kill_at, None))
        killed.start()
        local_hub.push(other, hub_dir=hub_dir, model_id=NAME, message=other.name)
        killed.join()
        assert local_hub.find_problems(hub_dir, NAME) == []
        assert messages(hub_dir).count(other.name) == 1
    assert [name for name in messages(hub_dir) if name.startswith("other")] == [
        other.name for other in others[::-1]
    ]

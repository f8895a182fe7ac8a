"""One process of all machines shrinks the images, one of each copies them; dead ones are taken over."""

import errno
import logging
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from cxr.data import shared_cache
from cxr.data.images import load_images
from cxr.data.images import make_builder
from cxr.errors import UserError
from cxr.run_folder import lock
from cxr.run_folder.record import FREE_TO_CHANGE
from killing import start_forkserver

from mimic_cxr_dataset import builder as reading
from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.labels import index_images

needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


def load(root: Path, folder: Path, *, view: str = "frontal", **options) -> dict:
    plumbing = {"shortest_side": 40, "num_proc": 1, "shows_progress": True, "on_bad_image": "error"}
    return load_images(root, LabelRule(view=view), cache_dir=folder / "cache", **plumbing | options)


def be(name: str, folder: Path, *, machine: str) -> None:
    """Makes this process one of `machine`, which does not see the file locks of others; it logs to a file."""
    handler = logging.FileHandler(folder / f"{name}.log")
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    lock_file = lock._lock_file
    lock.this_machine = lambda: machine
    lock._lock_file = lambda path: lock_file(path.with_name(f"{path.name}.{machine}"))


def shrink(name: str, root: Path, folder: Path, machine: str, stale: float, kill_at: int | None) -> None:
    """Shrinks the frontal images and notes each one that it opens; is killed at number `kill_at`."""
    be(name, folder, machine=machine)
    real, opened = reading.shrink_radiograph, []

    def note(path, *others):
        opened.append(path)
        (folder / f"{name}.count").write_text(str(len(opened)))
        if len(opened) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)
        return real(path, *others)

    reading.shrink_radiograph = note
    files = index_images(root)[0]
    builder = make_builder("frontal", files, root, shortest_side=40, cache_dir=folder / "cache")
    shared_cache.shrink_once(builder, num_proc=1, shows_progress=True, stale=stale)


def stage(name: str, caches: list[Path], folder: Path, is_killed: bool) -> None:
    """Copies the caches to the machine's disk; if `is_killed`, in the middle of a file."""
    be(name, folder, machine="a")

    def half_copy(source, copy):
        Path(copy).write_bytes(Path(source).read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    if is_killed:
        shared_cache.shutil.copyfile = half_copy
    shared_cache.stage_once(caches, folder / "disk", shows_progress=True, stale=600)


@pytest.fixture(scope="module")
def processes():
    """Processes that start with everything imported."""
    return start_forkserver("test_shared_cache", "mimic_cxr_dataset.pixels")


def run_all(processes, function, *all_args: tuple) -> list[int]:
    started = [processes.Process(target=function, args=args) for args in all_args]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    return [process.exitcode for process in started]


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def run_after_a_kill(processes, root: Path, folder: Path, *, stale: float, **machines: str) -> None:
    """Shrinks images on machine `a`, is killed there, and shrinks them on `machines`, by the logs' names."""
    assert run_all(processes, shrink, ("killed", root, folder, "a", stale, 5)) == [-signal.SIGKILL]
    live = [(name, root, folder, machine, stale, None) for name, machine in machines.items()]
    assert run_all(processes, shrink, *live) == [0] * len(live)


@pytest.mark.slow
@needs_kill
def test_builder_killed_on_another_machine_is_taken_over_and_images_are_shrunk_once(
    processes, sample_root, tmp_path
):
    names = {"one": "b", "other": "c"}
    run_after_a_kill(processes, sample_root, tmp_path, stale=1.0, **names)
    num_images = len(index_images(sample_root)[0])
    assert sorted(read(tmp_path / f"{name}.count") for name in names) == ["", str(num_images)]
    for name in names:
        line = r"Waiting: pid \d+ on \S+ since 20\d\d-\S+ \S+ is shrinking the frontal images into \S+1\.0\.0"
        assert re.search(line, read(tmp_path / f"{name}.log"))
    assert not list(tmp_path.rglob(f"{shared_cache.NEW}*"))


@pytest.mark.slow
@needs_kill
def test_builder_killed_on_the_same_machine_is_taken_over_without_waiting_for_its_heartbeat(
    processes, sample_root, tmp_path
):
    run_after_a_kill(processes, sample_root, tmp_path, stale=600.0, next="a")
    assert "Waiting" not in read(tmp_path / "next.log")


@pytest.mark.slow
@needs_kill
def test_copy_is_made_once_per_machine_and_again_after_a_kill_in_its_middle(processes, sample_root, tmp_path):
    pixels = load(sample_root, tmp_path)["train"].pixels
    caches = [Path(pixels.cache_files[0]["filename"]).parent]
    assert run_all(processes, stage, ("killed", caches, tmp_path, True)) == [-signal.SIGKILL]
    folder = tmp_path / "disk" / f"shrunk_images_{shared_cache.name_user()}"
    assert not list(folder.glob("frontal*")) and list(folder.glob(f"{shared_cache.NEW}*"))
    live = [(name, caches, tmp_path, False) for name in ("one", "other")]
    assert run_all(processes, stage, *live) == [0, 0]
    said = read(tmp_path / "one.log") + read(tmp_path / "other.log")
    assert len(re.findall(r"Copied \d+\.\d MB in \d+\.\d s", said)) == 1
    (copy,) = folder.glob("frontal*")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in caches[0].iterdir()
    }
    assert not list(folder.glob(f"{shared_cache.NEW}*"))


def test_only_the_groups_of_the_run_are_copied_and_the_images_are_read_from_there(sample_root, tmp_path):
    load(sample_root, tmp_path, view="all")
    stage_dir = tmp_path / "disk"
    plain, staged = load(sample_root, tmp_path), load(sample_root, tmp_path, stage_dir=stage_dir)
    assert [path.name[:8] for path in stage_dir.glob("*/*/")] == ["frontal-"]
    for split, images in plain.items():
        assert images.rows.equals(staged[split].rows)
        everything = range(len(images))
        assert images.read(everything) == staged[split].read(everything)
        assert all(stage_dir in Path(file["filename"]).parents for file in staged[split].pixels.cache_files)
    (copy,) = stage_dir.glob("*/frontal-*/")
    if os.name != "nt":
        assert copy.stat().st_mode & 0o077 == 0  # the cache is private, too
    assert "stage_dir" in FREE_TO_CHANGE


def test_copy_of_a_cache_that_was_made_again_is_not_used(sample_root, tmp_path):
    root, stage_dir = shutil.copytree(sample_root, tmp_path / "root"), tmp_path / "disk"
    path = Path(index_images(root)[0].query("split == 'train'")["path"].iloc[0])
    content = path.read_bytes()
    path.unlink()
    before = load(root, tmp_path, on_bad_image="skip", stage_dir=stage_dir)["train"]
    path.write_bytes(content)
    after = load(root, tmp_path, stage_dir=stage_dir)["train"]
    assert set(after["dicom_id"]) - set(before["dicom_id"]) == {path.stem}
    assert after.read(range(len(after))) == load(root, tmp_path)["train"].read(range(len(after)))


def test_disk_without_room_for_the_copy_is_one_line_before_copying(sample_root, tmp_path, monkeypatch):
    load(sample_root, tmp_path)
    monkeypatch.setattr(shared_cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    said = r"--stage_dir \S+disk: found 0\.0 MB free, expected \d+\.\d MB for the shrunk images; make room .*"
    with pytest.raises(UserError, match=said):
        load(sample_root, tmp_path, stage_dir=tmp_path / "disk")
    assert not list(tmp_path.glob("disk/*/frontal*"))


def test_stage_dir_that_is_a_file_is_refused(sample_root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--stage_dir .*cannot copy the shrunk images there"):
        load(sample_root, tmp_path, stage_dir=tmp_path / "file")


def test_disk_that_fills_during_the_copy_is_one_line_and_no_part_of_it_stays(
    sample_root, tmp_path, monkeypatch
):
    load(sample_root, tmp_path)

    def fill(source, copy):
        Path(copy).touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy))

    monkeypatch.setattr(shared_cache.shutil, "copyfile", fill)
    said = r"--stage_dir \S+disk: cannot copy the shrunk images there \(No space left on device\); make room"
    with pytest.raises(UserError, match=said):
        load(sample_root, tmp_path, stage_dir=tmp_path / "disk")
    assert not list(tmp_path.glob("disk/*/*/"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no user ids")
def test_users_of_one_disk_have_folders_of_their_own(sample_root, tmp_path, monkeypatch):
    for uid in (1, 2):
        monkeypatch.setattr(os, "getuid", lambda uid=uid: uid)
        load(sample_root, tmp_path, stage_dir=tmp_path / "disk")
    assert {path.parent.name for path in tmp_path.glob("disk/*/frontal-*")} == {
        "shrunk_images_1",
        "shrunk_images_2",
    }


def test_process_that_was_taken_for_dead_says_so_and_leaves_the_work_of_the_next_one_alone(tmp_path):
    said = r"another process took over.*start again"
    working = shared_cache.working(tmp_path, "is working", goes_first=True, stale=0.6)
    with pytest.raises(UserError, match=said), working as new:
        (tmp_path / "work.2").write_text("{}")  # the claim of the next one
        (tmp_path / f"{shared_cache.NEW}theirs").mkdir()
        time.sleep(0.3)
        raise FileNotFoundError(new)
    assert [path.name for path in tmp_path.glob(f"{shared_cache.NEW}*")] == [f"{shared_cache.NEW}theirs"]

"""One run at a time in a run folder: on one machine by a file lock, on several by a heartbeat."""

import errno
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cxr.run_folder import files
from cxr.run_folder import lock as lock_module
from cxr.run_folder.files import read_json
from cxr.run_folder.files import write_json
from cxr.run_folder.heartbeat import Claims
from cxr.run_folder.lock import LOCK_FILE
from cxr.run_folder.lock import claim_output_dir
from cxr.run_folder.lock import claims_on
from cxr.run_folder.lock import is_in_use
from cxr.run_folder.lock import lock_folder
from cxr.run_folder.lock import remove_leftovers

SCRIPTS = Path(files.__file__).parents[2]


# Holds a folder as a machine does whose file locks do not count for others.
OTHER_MACHINE = """
import socket, sys, time
from pathlib import Path
from cxr.run_folder import lock
from cxr.run_folder.heartbeat import Claims
socket.gethostname = lambda: "other"
lock._lock_file = lambda file: None
lock._claims_in = lambda folder: Claims(folder, beat=0.1, stale=1.0)
held = lock.claim_output_dir(Path(sys.argv[1]), resume=False) if sys.argv[2] == "run" else \
    lock.lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def quick_claims(monkeypatch):
    quick = functools.cache(lambda folder: Claims(folder, beat=0.1, stale=1.0))
    monkeypatch.setattr(lock_module, "_claims_in", quick)


@pytest.fixture
def other_machine(tmp_path, quick_claims, request):
    command = [sys.executable, "-c", OTHER_MACHINE, str(tmp_path), getattr(request, "param", "run")]
    with subprocess.Popen(
        command, cwd=SCRIPTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout.readline() == "locked\n"
        yield started
        started.kill()


def change_claim(folder: Path, **changes) -> None:
    path = claims_on(folder).last("folder")
    write_json(path, read_json(path) | changes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_output_folder_is_made_with_its_parents(tmp_path):
    claim_output_dir(tmp_path / "runs" / "a", resume=False)
    claim_output_dir(tmp_path / "runs" / "a", resume=False)  # empty: still free
    assert names(tmp_path / "runs") == ["a"]


def test_output_folder_with_something_in_it_is_refused_unless_the_run_continues_it(tmp_path):
    (tmp_path / "args.json").write_text("{}", encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(
        ValueError, match=r"has an unfinished run, .* continue that run with --resume_from_checkpoint latest"
    ):
        claim_output_dir(tmp_path, resume=False)
    claim_output_dir(tmp_path, resume=True)
    assert (tmp_path / "args.json").read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("resume", [False, True])
def test_file_in_place_of_the_output_folder_is_refused(tmp_path, resume):
    (tmp_path / "a").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        claim_output_dir(tmp_path / "a", resume=resume)
    assert (tmp_path / "a").read_text(encoding="utf-8") == "mine"


def test_locked_folder_is_in_use_and_refused_to_others_with_its_holder_until_it_is_released(tmp_path):
    assert not is_in_use(tmp_path / "absent")
    assert not is_in_use(tmp_path) and names(tmp_path) == []  # asking does not take it
    lock = lock_folder(tmp_path)
    assert is_in_use(tmp_path) and is_in_use(tmp_path)
    holder = rf"\(pid {os.getpid()} on {socket.gethostname()} since 20.*remove .*\.lock"
    with pytest.raises(ValueError, match=holder):
        lock_folder(tmp_path)
    lock.release()
    assert not is_in_use(tmp_path)
    lock_folder(tmp_path).release()


def test_lock_that_a_dead_run_seems_to_hold_is_waited_for_and_explained(tmp_path, monkeypatch):
    """As where a process that it started still lives; flock is held by all that inherited it."""
    monkeypatch.setattr(lock_module, "ORPHANS_SECONDS", 2)
    lock = lock_folder(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    change_claim(tmp_path, pid=process.pid)
    began = time.monotonic()
    with pytest.raises(ValueError, match="if you are sure that the run has ended, remove"):
        lock_folder(tmp_path)
    assert time.monotonic() - began >= 2
    (tmp_path / LOCK_FILE).unlink()  # what the message says
    lock_folder(tmp_path).release()
    lock.release()


def test_leftovers_of_a_killed_run_go_and_what_it_was_replacing_comes_back(tmp_path):
    for name in (".model.old", ".model.tmp", "checkpoints/step_2", "checkpoints/.step_2.old", ".mine.old"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name, encoding="utf-8")
    for name in (".results.json.12.tmp", ".lock", ".hidden", "args.json", ".mine.tmp", ".bashrc.old"):
        (tmp_path / name).write_text("", encoding="utf-8")
    remove_leftovers(tmp_path)
    mine = {".mine.old", ".mine.tmp", ".bashrc.old", ".hidden"}  # a user's own
    assert set(names(tmp_path)) == {".lock", "args.json", "checkpoints", "model"} | mine
    assert (tmp_path / "model" / "file").read_text(encoding="utf-8") == ".model.old"
    assert names(tmp_path / "checkpoints") == ["step_2"]


def test_run_that_was_killed_at_its_start_can_be_resumed_but_a_folder_that_is_no_run_cannot(tmp_path):
    for name in (".lock", "train.log", ".args.json.123.tmp"):
        (tmp_path / name).touch()
    claim_output_dir(tmp_path, resume=True).release()
    assert names(tmp_path) == [".claims", ".lock", "train.log"]
    (tmp_path / "plan.json").write_text("{}", encoding="utf-8")  # a study's
    with pytest.raises(ValueError, match="--resume_from_checkpoint: found no run in"):
        claim_output_dir(tmp_path, resume=True)


@pytest.mark.parametrize("pid", [None, 10**30, "x", -1, 2.5])
def test_edited_owner_of_a_lock_is_still_one_line(pid, tmp_path):
    lock = lock_folder(tmp_path)
    change_claim(tmp_path, pid=pid)
    with pytest.raises(ValueError, match="another run is writing to it"):
        lock_folder(tmp_path)
    lock.release()


def test_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match=r"cannot write there.*Read-only file system.*choose another"):
        claim_output_dir(tmp_path / "run", resume=False)


WITHOUT_FILE_LOCKS = "lock._lock_file = lambda file: None;"


@pytest.mark.parametrize("changes", ["", WITHOUT_FILE_LOCKS], ids=["file lock", "heartbeat only"])
def test_lock_of_a_killed_process_is_free(tmp_path, changes):
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(files.__file__).parents[2])!r});"
        f"from cxr.run_folder import lock; from pathlib import Path; {changes}"
        f"held = lock.lock_folder(Path({str(tmp_path)!r})); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        assert is_in_use(tmp_path)
        process.kill()
        process.wait()
    assert not is_in_use(tmp_path)


def test_folder_that_another_machine_holds_is_refused_while_its_heart_beats(tmp_path, other_machine):
    assert is_in_use(tmp_path)
    with pytest.raises(ValueError, match=rf"another run .*pid {other_machine.pid} on other since 20"):
        lock_folder(tmp_path)


def test_folder_of_a_machine_that_died_is_taken_over_after_its_heartbeat(tmp_path, other_machine, caplog):
    assert is_in_use(tmp_path)
    other_machine.kill()
    other_machine.wait()
    with caplog.at_level(logging.WARNING):
        lock = lock_folder(tmp_path)
    assert f"pid {other_machine.pid} on other since" in caplog.text and "at most 1 s" in caplog.text
    assert is_in_use(tmp_path)
    lock.release()
    assert not is_in_use(tmp_path)


@pytest.mark.parametrize("other_machine", ["run", "study"], indirect=True)
def test_run_or_study_that_was_taken_over_ends_at_once(tmp_path, other_machine):
    other_machine.send_signal(signal.SIGSTOP)  # as a machine whose disk does not answer
    lock_folder(tmp_path)
    other_machine.send_signal(signal.SIGCONT)
    assert other_machine.wait(20) == 1
    assert "another machine took this folder over" in other_machine.stderr.read()


def test_disk_without_file_locks_has_heartbeats_only(tmp_path, monkeypatch, quick_claims):
    def refuse(self):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock_module.FileLock, "acquire", refuse)
    lock = lock_folder(tmp_path)
    assert is_in_use(tmp_path)
    with pytest.raises(ValueError, match="another run is writing to it"):
        lock_folder(tmp_path)
    lock.release()
    assert not is_in_use(tmp_path)
    lock_folder(tmp_path).release()


def test_lock_is_released_when_nobody_has_it_any_more(tmp_path):
    lock_folder(tmp_path)
    assert not is_in_use(tmp_path)


def test_short_use_of_a_folder_is_waited_for(tmp_path):
    lock = lock_folder(tmp_path)
    threading.Timer(0.3, lock.release).start()
    lock_folder(tmp_path, patience=20).release()

"""Claims with a heartbeat: one holder at a time, and a dead one is taken over."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cxr.run_folder.heartbeat import Claims

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = {"beat": 0.1, "stale": 1.0}
# Takes each piece of work once, and notes who did it; "hold" never ends its first piece.
WORKER = """
import sys, time
from pathlib import Path
from cxr.run_folder.heartbeat import Claims
folder, who, hold = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "hold"
claims = Claims(folder / "claims", beat=0.1, stale=1.0)
while left := [name for name in map(str, range(8)) if not (folder / name).exists()]:
    for name in left:
        if claim := claims.take(name):
            if hold:
                print("holding", name, flush=True)
                time.sleep(600)
            if not (folder / name).exists():
                time.sleep(0.05)
                with (folder / name).open("x") as file:
                    file.write(who)
            claim.release()
    time.sleep(0.05)
"""


def start(folder: Path, who: str, *, hold: bool = False) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, str(folder), who, "hold" if hold else "work"]
    return subprocess.Popen(command, cwd=SCRIPTS, stdout=subprocess.PIPE, text=True)


def wait_for_claim(claims: Claims, name: str, *, seconds: float = 20):
    until = time.monotonic() + seconds
    while (claim := claims.take(name)) is None and time.monotonic() < until:
        time.sleep(0.05)
    return claim


@pytest.mark.slow
def test_second_process_waits_for_a_heartbeat_and_goes_on_after_the_release(tmp_path):
    mine, other = Claims(tmp_path, **QUICK), Claims(tmp_path, **QUICK)
    claim = mine.take("cell")
    until = time.monotonic() + 2  # twice the time after which a claim without a heartbeat is stale
    while time.monotonic() < until:
        assert other.take("cell") is None
        time.sleep(0.1)
    assert other.take("another cell")
    claim.release()
    assert other.take("cell")


def test_a_holder_that_was_silent_sees_that_it_was_taken_over(tmp_path):
    silent = Claims(tmp_path, beat=600, stale=1.0).take("cell")
    assert wait_for_claim(Claims(tmp_path, **QUICK), "cell")
    silent._keep(0.01)
    assert silent.lost


def test_a_holder_sees_that_it_was_taken_over_also_after_its_folder_was_removed(tmp_path):
    silent = Claims(tmp_path / "claims", beat=600).take("cell")
    shutil.rmtree(tmp_path / "claims")
    new = Claims(tmp_path / "claims", beat=600).take("cell")
    assert new.path == silent.path
    content = new.path.read_bytes()
    silent._keep(0.01)
    assert silent.lost
    silent.release()
    assert new.path.read_bytes() == content


def test_a_holder_that_was_silent_until_its_release_leaves_the_claim_of_the_next_one_alone(tmp_path):
    silent = Claims(tmp_path, beat=600).take("cell")
    silent.path.write_text('{"token": "of the next one"}', encoding="utf-8")
    silent.release()
    assert silent.path.read_text(encoding="utf-8") == '{"token": "of the next one"}'


def test_a_claim_that_cannot_be_read_for_a_moment_is_taken(tmp_path, monkeypatch):
    Claims(tmp_path).take("cell").release()
    claims = Claims(tmp_path)

    def refuse(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert claims.take("cell") is None and claims.is_taken("cell")
    assert claims.take("cell")


def test_names_with_a_common_beginning_are_different_claims(tmp_path):
    claims = Claims(tmp_path)
    for name in ("cell", "cell.5", "cell[1]", "cell.5_s0"):
        assert claims.take(name).path.name == f"{name}.1"


def test_a_holder_outlives_a_folder_that_cannot_be_reached_for_a_while(tmp_path):
    claim = Claims(tmp_path / "claims", beat=0.05).take("cell")
    (tmp_path / "claims").rename(tmp_path / "away")
    time.sleep(0.3)
    assert claim._thread.is_alive()
    (tmp_path / "away").rename(tmp_path / "claims")
    before = claim.path.read_bytes()
    until = time.monotonic() + 10
    while claim.path.read_bytes() == before and time.monotonic() < until:
        time.sleep(0.02)
    assert claim.path.read_bytes() != before
    (tmp_path / "claims").rename(tmp_path / "away")
    claim.release()


def test_earlier_claim_of_the_same_job_is_taken_over_at_once(tmp_path):
    Claims(tmp_path, beat=600).take("cell", owners=["17_3"])
    assert Claims(tmp_path).take("cell", owners=["18"]) is None
    assert Claims(tmp_path).take("cell", owners=["17_3"])


def test_slow_process_cannot_take_a_number_that_has_passed(tmp_path, monkeypatch):
    claims = Claims(tmp_path, **QUICK)
    for _ in range(3):
        claims.take("cell").release()
    real, seen = Claims._is_free, []

    def meanwhile(self, path, owner):
        if not seen:
            seen.append(path)
            for _ in range(2):
                Claims(tmp_path, **QUICK).take("cell").release()
        return real(self, path, owner)

    monkeypatch.setattr(Claims, "_is_free", meanwhile)
    assert claims.take("cell") is None


@pytest.mark.slow
def test_two_processes_share_the_work_and_a_killed_third_is_taken_over(tmp_path):
    killed = start(tmp_path, "killed", hold=True)
    assert killed.stdout.readline().startswith("holding")
    workers = [start(tmp_path, who) for who in ("one", "other")]
    killed.kill()
    assert [worker.wait(60) for worker in workers] == [0, 0]  # a piece done twice would be an error
    assert {(tmp_path / str(number)).read_text() for number in range(8)} <= {"one", "other"}
    killed.wait()
    killed.stdout.close()

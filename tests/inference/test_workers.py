"""Reading with many workers: the same as with one, light, and ended cleanly whoever is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import predict
import pytest
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.inference import workers
from cxr.inference.radiographs import read_in_order
from dicom_files import write_dicom
from picture_files import encode
from picture_files import soft_picture
from tiny_models import make_model

from mimic_cxr_dataset.radiographs import Reading

PICTURE = soft_picture()
KILLED = "a process that reads images was killed, most likely because memory ran out: start again"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """600 files: the same pictures in three formats, and some that are none."""
    folder = tmp_path_factory.mktemp("many")
    png, dicom = encode(PICTURE, "PNG"), write_dicom(folder / "image.dcm", PICTURE, Modality="CT")
    kinds = [("jpg", encode(PICTURE)), ("png", png), ("dcm", dicom.read_bytes()), ("jpeg", b"none")]
    for number in range(599):
        suffix, content = kinds[number % len(kinds)]
        (folder / f"{number:03}.{suffix}").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "m", bias=0.1)


def read_all(paths: list[Path], *, num_workers: int) -> list:
    with workers.open_pool(len(paths), num_workers) as pool:
        options = {"shortest_side": 30, "reading": Reading(), "num_ahead": 40}
        return [outcome for _, outcome in read_in_order(paths, pool=pool, **options)]


def spawned() -> list[int]:
    return [process.pid for process in multiprocessing.active_children()]


def test_600_files_have_the_same_rows_by_processes_as_by_threads(folder, model, tmp_path, monkeypatch):
    tables, seen = [], []

    def watch(classifier, images):
        seen.append(len(spawned()))
        return probabilities(classifier, images)

    probabilities = predict.Classifier.probabilities
    monkeypatch.setattr(predict.Classifier, "probabilities", watch)
    for least in (workers.NUM_FOR_PROCESSES, 10**6):
        monkeypatch.setattr(workers, "NUM_FOR_PROCESSES", least)
        argv = [
            str(model),
            str(folder),
            "--num_workers=2",
            "--device=cpu",
            f"--output={tmp_path / 'out.csv'}",
        ]
        with pytest.raises(SystemExit):  # some are refused
            predict.main(argv)
        tables.append((tmp_path / "out.csv").read_bytes())
        assert set(seen) == {2 if least < 600 else 0} and not spawned()
        seen.clear()
    assert tables[0] == tables[1] and tables[0].count(b"\n") == 601


def test_processes_import_neither_torch_nor_the_script(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path[:0] = {[str(Path(predict.__file__).parent)]!r}\n"
        "from cxr.inference import workers\n"
        "print('imported', flush=True)\n"
        "if __name__ == '__main__':\n"
        "    import torch\n"
        "    with workers.open_pool(1000, 2) as pool:\n"
        "        print(pool.submit(eval, \"'torch' in __import__('sys').modules\").result())\n"
        "    print(__file__ == sys.argv[0])\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.stdout.split() == ["imported", "False", "True"], done.stderr


# What is killed ---------------------------------------------------------------------------------------------


class Broken(ThreadPoolExecutor):
    """A pool whose process was killed, which who submits is told, or who waits."""

    def __init__(self, *, tells_at_once: bool):
        super().__init__(1)
        self.tells_at_once = tells_at_once

    def submit(self, *args):
        if self.tells_at_once:
            raise BrokenProcessPool("of no use to a user")
        future = Future()
        future.set_exception(BrokenProcessPool("of no use to a user"))
        return future


@pytest.mark.parametrize("tells_at_once", [True, False])
def test_killed_process_ends_the_reading_in_one_line_of_advice(tells_at_once):
    options = {"shortest_side": 30, "reading": Reading(), "num_ahead": 4}
    with pytest.raises(UserError, match=KILLED):
        list(read_in_order([Path("a")], pool=Broken(tells_at_once=tells_at_once), **options))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_rows_before_a_process_was_killed_are_kept_and_the_next_call_continues(
    folder, model, tmp_path, capsys, monkeypatch
):
    def kill_once(classifier, images):
        calls.append(images)
        if len(calls) == 3:
            os.kill(spawned()[0], signal.SIGKILL)
            time.sleep(0.5)  # until the pool has noticed
        return probabilities(classifier, images)

    calls, probabilities = [], predict.Classifier.probabilities
    monkeypatch.setattr(predict.Classifier, "probabilities", kill_once)
    flags = ["--num_workers=2", "--device=cpu", f"--output={tmp_path / 'out.csv'}"]
    argv = [str(model), str(folder), *flags]
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: predict.main(argv))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and KILLED in said.splitlines()[-1] and "Traceback" not in said
    assert not spawned()
    kept = (tmp_path / ".out.csv.partial").read_text(encoding="utf-8").count("\n") - 2
    assert kept >= 96
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        predict.main(argv)
    assert f"{kept:,} rows of an earlier call; continuing it" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").count("\n") == 601


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("seconds", [0, 0.3])
def test_interrupt_while_processes_start_or_work_leaves_rows_and_no_trace(seconds, folder, model, tmp_path):
    """As Ctrl-C does it, to all processes of a terminal."""
    command = [sys.executable, predict.__file__, str(model), str(folder), "--device=cpu", "--num_workers=2"]
    command.append(f"--output={tmp_path / 'out.csv'}")
    unfinished = tmp_path / ".out.csv.partial"
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        while not unfinished.exists():
            time.sleep(0.02)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert f"{unfinished} holds the rows so far" in said and unfinished.exists()

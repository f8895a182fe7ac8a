"""Cells as Slurm jobs, with programs that stand in for Slurm's: what is submitted, shown and cancelled."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import run_study
from cxr.data.sources import REPOSITORY
from cxr.errors import UserError
from cxr.run_folder import lock
from cxr.run_folder.files import write_json
from cxr.run_folder.heartbeat import Claims
from cxr.run_folder.lock import CLAIMS_DIR
from cxr.run_folder.record import read_results
from cxr.study import grid
from cxr.study import presets
from cxr.study import runner
from cxr.study import slurm
from cxr.study import slurm_job
from cxr.study.machine import Device
from cxr.training.progress import Progress
from cxr.training.progress import has_checkpoint
from finished_runs import classification_results
from finished_runs import finish
from finished_runs import measured
from finished_runs import pretraining_results

PROGRAMS = {
    # Puts an array's jobs into the queue, a line each, and keeps the batch file.
    "sbatch": """
number=$(( $(ls "$FAKE"/batch | wc -l) + 100 ))
cp "$1" "$FAKE/batch/$number"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
if [ -n "$last" ]; then seq -f "${number}_%.0f PENDING" 0 "$last" >> "$FAKE/queue"
else echo "$number PENDING" >> "$FAKE/queue"; fi
echo "Submitted batch job $number"
""",
    "squeue": 'cat "$FAKE/queue"',
    "scancel": """
printf "%s PENDING\\n" "$@" > "$FAKE/ended"
grep -vxFf "$FAKE/ended" "$FAKE/queue" > "$FAKE/left"
mv "$FAKE/left" "$FAKE/queue"
""",
    "scontrol": 'echo "MaxArraySize            = $ARRAY_SIZE"',
    "srun": "exit 1",
}
OPTIONS = {
    "partition": "gpu",
    "account": None,
    "minutes": 60,
    "nodes": 1,
    "gpus": 1,
    "args": {"mem": "8G"},
    "max_jobs": None,
}
# Of each pretraining: three sizes, and three arms.
NINE_CLASSIFIERS = {
    "models": ["vit-mae-tiny"],
    "tasks": ["finding"],
    "train_sizes": [16, 17, 18],
    "recipes": ["paper", "mae"],
}


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """Returns the folder of a Slurm that only queues."""
    folder = tmp_path / "fake"
    (folder / "bin").mkdir(parents=True)
    (folder / "batch").mkdir()
    (folder / "queue").touch()
    for name, text in PROGRAMS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("ARRAY_SIZE", "1001")
    monkeypatch.setattr(slurm, "LATE_SECONDS", 0.0)
    return folder


def planned(output_dir: Path, *, settings: presets.Settings = (), **axes) -> list[grid.Cell]:
    chosen = presets.change_grid(
        presets.GRIDS["smoke"], augmentations=None, mask_ratios=None, settings=settings, **axes
    )
    cells = grid.plan_cells(chosen, data_dir=output_dir, output_dir=output_dir)
    output_dir.mkdir(exist_ok=True)
    write_json(output_dir / "plan.json", runner.check_study(output_dir, cells).as_json())
    return cells


def jobs_of(cells: list[grid.Cell], output_dir: Path, **options) -> slurm.SlurmStudy:
    seconds = dict.fromkeys((cell.run_id for cell in cells), 1.0)
    study = runner.StudyRunner(cells, output_dir, seconds=seconds, parallel=1)
    return slurm.SlurmStudy(study, slurm.Options(**OPTIONS | options), output_dir / "config.yaml")


def batch_files(fake: Path) -> list[str]:
    return [path.read_text() for path in sorted((fake / "batch").iterdir())]


def queue(fake: Path) -> list[str]:
    return [line.split()[0] for line in (fake / "queue").read_text().splitlines()]


def test_pretraining_is_submitted_first_and_its_classifiers_wait_for_it(fake, tmp_path):
    cells = planned(tmp_path / "study")
    jobs = jobs_of(cells, tmp_path / "study")
    assert jobs.submit() == len(cells)
    first, *arrays = batch_files(fake)
    assert "dependency" not in first
    assert sum("--dependency=afterok:100" in text for text in arrays) == 1
    for text in (first, *arrays):
        assert "#SBATCH --partition=gpu" in text and "#SBATCH --mem=8G" in text
        assert "#SBATCH --signal=USR2@180" in text and "#SBATCH --requeue" in text
        assert sys.executable in text
    assert grid.Plan.read(tmp_path / "study" / "plan.json").jobs.keys() == {cell.run_id for cell in cells}


def test_a_job_has_the_cores_that_were_asked_for_and_the_shells_python_path(fake, tmp_path, monkeypatch):
    folder = tmp_path / "study"
    jobs_of(planned(folder), folder, args={"cpus-per-task": "8"}).submit()
    (fake / "bin" / "srun").write_text('#!/bin/bash\necho "$SRUN_CPUS_PER_TASK $PYTHONPATH"\n')
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    said = subprocess.run(["bash", fake / "batch" / "100"], capture_output=True, text=True).stdout
    assert said.split() == ["8", f"{REPOSITORY}/scripts:{REPOSITORY}:/mine"]


def test_a_job_on_two_nodes_has_the_gpus_of_each_and_ends_as_one(fake, tmp_path):
    jobs_of(planned(tmp_path / "study"), tmp_path / "study", nodes=2, gpus=8).submit()
    for text in batch_files(fake):
        assert "#SBATCH --nodes=2" in text and "#SBATCH --gpus-per-node=4" in text
        assert "--wait=60 --kill-on-bad-exit=1" in text


def test_the_same_command_again_submits_no_cell_twice(fake, tmp_path):
    cells = planned(tmp_path / "study")
    jobs_of(cells, tmp_path / "study").submit()
    before = queue(fake)
    assert jobs_of(planned(tmp_path / "study", seeds=[0]), tmp_path / "study").submit() == 0
    more = planned(tmp_path / "study", seeds=[0, 1])
    assert jobs_of(more, tmp_path / "study").submit() == len(more) - len(cells)
    assert queue(fake)[: len(before)] == before and len(set(queue(fake))) == len(more)


def test_states_are_those_of_results_queue_and_logs(fake, tmp_path, capsys):
    folder = tmp_path / "study"
    cells = planned(folder)
    jobs_of(cells, folder).submit()
    job_of = grid.Plan.read(folder / "plan.json").jobs
    free = [cell for cell in cells if cell.script != grid.PRETRAINING and not cell.needs]
    pretraining = next(cell for cell in cells if cell.script == grid.PRETRAINING)
    finish(folder / free[0].run_id, classification_results(test=measured()))
    runner.log_of(pretraining, folder).write_text("the reason\n")
    ended = {job_of[cell.run_id] for cell in (free[0], pretraining)}
    running = job_of[free[1].run_id]
    lines = [f"{job} {'RUNNING' if job == running else 'PENDING'}" for job in queue(fake) if job not in ended]
    (fake / "queue").write_text("\n".join(lines) + "\n")
    jobs = jobs_of(cells, folder)
    assert jobs.study.names_in("done") == [free[0].run_id]
    assert jobs.study.names_in("running") == [free[1].run_id]
    assert jobs.study.names_in("failed") == [pretraining.run_id]
    jobs.show()
    assert "the reason" in capsys.readouterr().out
    jobs.retry()
    assert [cell.run_id for cell in jobs.missing()] == [pretraining.run_id]


def test_arrays_are_split_where_slurm_says_and_the_queue_is_held_within_max_jobs(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("ARRAY_SIZE", "2")
    folder = tmp_path / "study"
    cells = planned(folder)
    jobs = jobs_of(cells, folder, max_jobs=3)
    assert jobs.submit() == 3 and jobs.submit() == 0
    (fake / "queue").write_text("")  # all have ended without results
    jobs.update()
    assert len(jobs.study.names_in("failed", "impossible")) >= 3
    jobs.options = slurm.Options(**OPTIONS)
    jobs.retry()
    jobs.submit()
    last = re.findall(r"--array=0-(\d+)", "".join(batch_files(fake)))
    assert set(last) == {"1"}


def test_a_queue_that_cannot_be_read_for_a_while_does_not_end_the_waiting(fake, tmp_path, capsys):
    folder = tmp_path / "study"
    jobs = jobs_of(planned(folder), folder)
    jobs.submit()
    real = fake / "bin" / "squeue"
    pauses = iter(["#!/bin/bash\necho 'socket timed out' >&2; exit 1\n", real.read_text()])

    submitted = (fake / "batch").stat().st_mtime_ns

    def sleep(_):
        real.write_text(text := next(pauses))
        if "exit 1" not in text:
            (fake / "queue").write_text("")  # all jobs have ended

    jobs.follow(sleep=sleep)
    assert "squeue failed (socket timed out)" in capsys.readouterr().out
    assert (fake / "batch").stat().st_mtime_ns == submitted
    assert not jobs.study.names_in("waiting", "running")


def test_waiting_goes_on_while_slurm_is_silent_and_a_cell_fails_and_ends_with_status_1(
    fake, tmp_path, sample_root, monkeypatch, capsys
):
    folder, squeue = tmp_path / "study", fake / "bin" / "squeue"
    answers = iter(["#!/bin/bash\necho 'socket timed out' >&2; exit 1\n", squeue.read_text()])

    def sleep(_):
        squeue.write_text(text := next(answers))
        if "exit 1" in text:
            return
        # The pretraining has failed, and Slurm has removed the classifier that needs it.
        finish(folder / "resnet-18-scratch_none_16_finding_s0", classification_results(test=measured()))
        (folder / "logs" / "vit-mae-tiny-scratch_pretrain_s0.log").write_text("the reason\n")
        (fake / "queue").write_text("")

    monkeypatch.setattr(slurm.SlurmStudy.follow, "__defaults__", (sleep,))
    monkeypatch.setattr(run_study, "report", lambda folder: True)
    device = Device(kind="cpu", tflops={"vit": 1.0, "resnet": 1.0})
    monkeypatch.setattr(run_study, "measure_device", lambda launch: device)
    flags = ["--preset=smoke", "--augmentations=none", "--mask_ratios=0", "--train_sizes=16"]
    flags += ["--tasks=finding", "--set", "per_device_train_batch_size=8", "--slurm", "--wait"]
    with pytest.raises(SystemExit) as ended:
        run_study.main([f"--data_dir={sample_root}", f"--output_dir={folder}", *flags])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "squeue failed (socket timed out)" in printed
    shown = printed.partition("socket timed out")[2]
    assert "1 done, 1 failed, 1 impossible" in shown
    assert "vit-mae-tiny-scratch_pretrain_s0 FAILED in job 100" in shown and "the reason" in shown
    assert "2 of 3 cells failed or were skipped" in shown


def test_cancel_ends_the_jobs_of_this_study_only(fake, tmp_path, capsys):
    folder = tmp_path / "study"
    jobs = jobs_of(planned(folder), folder)
    (fake / "queue").write_text("7 PENDING\n")
    jobs.submit()
    slurm.cancel_study(folder, patience=0)
    assert f"Cancelled {len(jobs.study.cells)} jobs" in capsys.readouterr().out
    assert queue(fake) == ["7"]
    again = jobs_of(planned(folder), folder)
    assert not again.study.names_in("failed", "impossible")
    assert again.submit() == len(again.study.cells)
    with pytest.raises(UserError, match="found no study in"):
        slurm.cancel_study(tmp_path, patience=0)


def test_absent_or_refusing_slurm_is_one_line(fake, tmp_path, monkeypatch):
    folder = tmp_path / "study"
    cells = planned(folder)
    (fake / "bin" / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"sbatch refused .*\(invalid partition"):
        jobs_of(cells, folder).submit()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="found no sbatch"):
        slurm.check_programs()


LIMITED = """#!/bin/bash
room=$(( 4 - $(wc -l < "$FAKE/queue") ))
wanted=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
[ $(( ${wanted:-0} + 1 )) -gt $room ] && { echo "error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }
"""


def test_the_users_limit_of_jobs_is_filled_and_the_others_follow_when_there_is_room(fake, tmp_path):
    (fake / "bin" / "sbatch").write_text(LIMITED + PROGRAMS["sbatch"])
    folder = tmp_path / "study"
    jobs = jobs_of(planned(folder), folder)
    assert jobs.submit() == 4 and len(jobs.study.cells) > 6
    assert jobs.submit() == 0 and not jobs.missing()
    first = queue(fake)
    (fake / "queue").write_text("".join(f"{job} PENDING\n" for job in first[2:]))
    for name in [name for name, job in jobs.plan.jobs.items() if job in first[:2]]:
        finish(folder / name, pretraining_results())
    jobs.update()
    assert jobs.submit() == 2 and len(queue(fake)) == 4


def jobs_that_left_the_queue(fake: Path, tmp_path: Path) -> slurm.SlurmStudy:
    jobs = jobs_of(planned(tmp_path / "study"), tmp_path / "study")
    jobs.submit()
    (fake / "queue").write_text("")
    return jobs


def test_a_cell_that_a_call_without_slurm_runs_has_not_failed(fake, tmp_path):
    jobs, folder = jobs_that_left_the_queue(fake, tmp_path), tmp_path / "study"
    name = jobs.study.cells[0].run_id
    claims = Claims(folder / CLAIMS_DIR)
    claim = claims.take(name, owners=[jobs.plan.jobs[name]])  # of the job itself, which was killed
    jobs.update()
    assert jobs.study.states[name] == "failed"
    claim.release()
    claim = claims.take(name)
    jobs.study.states[name] = "waiting"
    jobs.update()
    assert jobs.study.states[name] == "running"
    claim.release()


def test_results_that_a_network_disk_shows_late_are_no_failure(fake, tmp_path):
    jobs = jobs_that_left_the_queue(fake, tmp_path)
    name = jobs.study.cells[0].run_id
    jobs.update(patience=70)
    assert not jobs.study.names_in("failed", "impossible")
    finish(tmp_path / "study" / name, pretraining_results())
    jobs.update(patience=70)
    assert jobs.study.names_in("done") == [name]


def test_a_cell_that_is_submitted_again_may_show_its_results_late_too(fake, tmp_path):
    jobs = jobs_that_left_the_queue(fake, tmp_path)
    name = jobs.study.cells[0].run_id
    jobs.update()
    assert jobs.study.states[name] == "failed"
    jobs.retry()
    jobs.submit()
    (fake / "queue").write_text("")
    jobs.gone = {job: since - 3600 for job, since in jobs.gone.items()}  # the first job, an hour ago
    jobs.update(patience=70)
    finish(tmp_path / "study" / name, pretraining_results())
    jobs.update(patience=70)
    assert jobs.study.states[name] == "done"


def test_jobs_that_were_submitted_before_sbatch_refused_one_are_known(fake, tmp_path):
    folder = tmp_path / "study"
    cells = planned(folder)
    (fake / "bin" / "sbatch").write_text(
        "#!/bin/bash\ngrep -q dependency $1 && { echo 'too many jobs' >&2; exit 1; }\n" + PROGRAMS["sbatch"]
    )
    with pytest.raises(UserError, match="too many jobs"):
        jobs_of(cells, folder).submit()
    jobs = grid.Plan.read(folder / "plan.json").jobs
    assert jobs and set(jobs.values()) == set(queue(fake))


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize(
    ("axes", "num_pretrainings"),
    [
        ({"seeds": list(range(17)), "train_sizes": list(range(16, 66))}, 17),
        (NINE_CLASSIFIERS | {"seeds": list(range(500))}, 500),
    ],
)
def test_5000_cells_are_planned_submitted_and_shown_in_a_minute(fake, tmp_path, axes, num_pretrainings):
    tracemalloc.start()  # the process may hold more from other tests
    started = time.monotonic()
    folder = tmp_path / "study"
    cells = planned(folder, **axes)
    assert len(cells) >= 5000
    assert sum(cell.script == grid.PRETRAINING for cell in cells) == num_pretrainings
    assert jobs_of(cells, folder).submit() == len(cells)
    jobs_of(cells, folder).show()
    took, peak = time.monotonic() - started, tracemalloc.get_traced_memory()[1] / 2**30
    tracemalloc.stop()
    print(f"{len(cells)} cells: {took:.0f} s, {peak:.2f} GB, {len(batch_files(fake))} batch files")
    assert took < 60 and peak < 0.5  # and the interpreter with its libraries takes less than the other half


PROGRESS = Progress(images_per_step=8, step=2).as_json()
# A cell that works until SIGTERM and then saves a checkpoint, or finishes where there is one.
CELL = """
import pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
run.mkdir(parents=True, exist_ok=True)
def save(*_):
    time.sleep(0.5)
    checkpoint = run / "checkpoints" / "step_2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text(sys.argv[2])
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(run / "started").touch()
time.sleep(600)
"""


@pytest.fixture
def job(tmp_path) -> slurm_job.CellJob:
    cell = planned(tmp_path / "study")[0]
    config = Path(__file__).parents[2] / "accelerate_configs" / "cpu.yaml"
    before = signal.getsignal(signal.SIGTERM)
    yield slurm_job.CellJob(cell, tmp_path / "study", config)
    signal.signal(signal.SIGTERM, before)


def test_a_job_near_its_time_limit_waits_for_the_checkpoint_and_then_starts_again(job, monkeypatch):
    run = job.run
    command = [sys.executable, "-I", "-S", "-c", CELL, str(run), json.dumps(PROGRESS)]
    monkeypatch.setattr(runner, "command", lambda *_, **__: command)

    def requeue(*_):
        again = job.checkpoint()
        assert has_checkpoint(run) and again.function.cell == job.cell
        sys.exit(75)

    def send():
        while not (run / "started").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, requeue)
    threading.Thread(target=send).start()
    with pytest.raises(SystemExit, match="75"):
        job()
    signal.signal(signal.SIGUSR2, before)
    assert Claims(job.output_dir / CLAIMS_DIR).take(job.cell.run_id)


def test_a_job_that_waited_runs_its_cell_with_the_flags_of_the_last_call(job, monkeypatch):
    started = []

    def start_cell(cell, *_, **__):
        started.append(cell.flags["learning_rate"])
        finish(job.output_dir / cell.run_id, pretraining_results())
        return subprocess.Popen(["true"])

    monkeypatch.setattr(runner, "start_cell", start_cell)
    planned(job.output_dir, settings=(("", {"learning_rate": 0.5}),))
    job()
    assert started == [0.5]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("single_gpu_fp16.yaml", ""),
        ("multi_gpu_fp16.yaml", "--main_process_port 15007"),
        ("multi_node_fp16.yaml", "--main_process_port 15007 --main_process_ip 10.0.0.1"),
    ],
)
def test_the_processes_of_a_job_meet_at_its_own_port_on_its_first_node(job, config, words, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "30007")
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1")
    job.config_file = job.config_file.with_name(config)
    command = runner.command(job.cell, job.run, job.launch())
    assert words in " ".join(command) and ("--main_process" in " ".join(command)) == bool(words)


def test_another_node_does_what_the_first_one_has_started_in_this_attempt(job, monkeypatch):
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    code = "import sys; print(sys.argv)"
    words = [sys.executable, "-c", code, "--resume_from_checkpoint=latest"]
    job.orders.parent.mkdir()
    write_json(job.orders, {"attempt": "7 0", "words": [sys.executable, "-c", "1 / 0"]})
    threading.Timer(1, write_json, args=(job.orders, {"attempt": "7 1", "words": words})).start()
    threading.Timer(2, finish, args=(job.run, pretraining_results())).start()
    job()
    log = job.output_dir / "logs" / f"{job.cell.run_id}.node1.log"
    assert "'--machine_rank', '1', '--resume_from_checkpoint=latest'" in log.read_text()
    assert not Claims(job.output_dir / CLAIMS_DIR).holder(job.cell.run_id)


def test_a_job_takes_over_from_a_node_that_died_with_a_claim_on_the_cell_and_on_its_run(job, monkeypatch):
    run = job.output_dir / job.cell.run_id
    Claims(job.output_dir / CLAIMS_DIR, beat=600).take(run.name)
    Claims(run / CLAIMS_DIR, beat=600).take("folder")
    quick = functools.cache(lambda folder: Claims(folder, beat=0.2, stale=2.0))
    monkeypatch.setattr(lock, "_claims_in", quick)
    monkeypatch.setattr(slurm_job, "Claims", quick)
    monkeypatch.setattr(slurm_job, "POLL_SECONDS", 0.05)

    def start_cell(*_, **__):
        finish(run, pretraining_results())
        return subprocess.Popen(["true"])

    monkeypatch.setattr(runner, "start_cell", start_cell)
    job()
    assert read_results(run)


def test_a_job_waits_for_another_process_that_runs_its_cell_and_leaves_a_finished_one(
    job, monkeypatch, capsys
):
    monkeypatch.setattr(runner, "start_cell", lambda *_, **__: pytest.fail("started"))
    claim = Claims(job.output_dir / CLAIMS_DIR, beat=0.1).take(job.cell.run_id, owners=["5"])

    def end():
        finish(job.output_dir / job.cell.run_id, pretraining_results())
        claim.release()

    threading.Timer(1, end).start()
    job()
    assert f"{job.cell.run_id}: waiting for another process" in capsys.readouterr().out
    job()


def test_a_job_that_saved_nothing_before_its_time_limit_does_not_start_again(job):
    job.start(lambda: subprocess.Popen(["sleep", "60"]))
    job.steps_before = []
    with pytest.raises(RuntimeError, match="saved no checkpoint within the time limit; use a longer"):
        job.checkpoint()
    checkpoint = job.run / "checkpoints" / "step_2"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "progress.json", PROGRESS)
    assert job.checkpoint().function.cell == job.cell

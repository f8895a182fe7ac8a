"""A study on a real Slurm, whose jobs, nodes and controller fail, ends as a study on one machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SCRIPTS
from equal_runs import without_times
from slurm_cluster import MISSING
from slurm_cluster import SlurmCluster
from slurm_cluster import free_ports
from slurm_cluster import wait_for
from tiny_runs import TINY_VIT
from tiny_runs import read_epochs
from tiny_runs import read_results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"found no {', '.join(MISSING)}; install Slurm"),
]
PRETRAINING = "vit-mae-tiny-scratch_pretrain_s{}"
CLASSIFIER = "vit-mae-tiny-scratch-pre_classic_all_finding_s{}"
STUDY = [
    *("--preset=smoke", "--models=vit-mae-tiny", "--pretrain=instead", "--tasks=finding"),
    *("--augmentations=classic", "--mask_ratios=0", "--train_sizes=all", "--seeds", "0", "1"),
    f"--config_file={SCRIPTS.parent / 'accelerate_configs' / 'cpu.yaml'}",
    *("--set", "image_size=32", "cache_image_size=32", "num_train_epochs=20"),
    "per_device_train_batch_size=8",
    TINY_VIT[1].replace("--config_overrides", "vit.config_overrides"),
]


@pytest.fixture(scope="module")
def cluster():
    with SlurmCluster() as started:
        yield started


def study(cluster: SlurmCluster, data: Path, output_dir: Path, *flags: str) -> tuple[int, str]:
    words = [sys.executable, SCRIPTS / "run_study.py", f"--data_dir={data}", f"--output_dir={output_dir}"]
    done = subprocess.run(
        [*words, *STUDY, *flags], env=cluster.environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def jobs_of(output_dir: Path) -> dict[str, str]:
    return json.loads((output_dir / "plan.json").read_text(encoding="utf-8"))["jobs"]


def has_begun(run: Path) -> bool:
    return (run / "metrics.jsonl").is_file()


def test_a_study_whose_jobs_and_nodes_fail_ends_as_on_one_machine(cluster, sample_root, tmp_path):
    status, said = study(cluster, sample_root, tmp_path / "local", "--parallel=2")
    assert status == 0, said
    folder = tmp_path / "slurm"
    status, said = study(cluster, sample_root, folder, "--slurm")
    assert status == 0 and "Submitted 4 cells" in said, said
    jobs = jobs_of(folder)
    requeued, killed = (PRETRAINING.format(seed) for seed in (0, 1))

    wait_for(lambda: has_begun(folder / requeued), seconds=300)
    cluster.run("scontrol", "requeue", jobs[requeued])
    wait_for(lambda: has_begun(folder / killed), seconds=300)
    cluster.run("scancel", "--signal=KILL", "--full", jobs[killed])
    cluster.stop("slurmctld")
    cluster.start("slurmctld", "slurmctld", "-D")
    wait_for(cluster.queue, seconds=60)
    cluster.run("scontrol", "update", "nodename=node2", "state=drain", "reason=test")

    wait_for(lambda: cluster.queue().get(jobs[requeued]) == "PENDING", seconds=120)
    cluster.run("scontrol", "update", f"jobid={jobs[requeued]}", "starttime=now")  # not after two minutes
    wait_for(lambda: not cluster.queue(), seconds=900)
    cluster.run("scontrol", "update", "nodename=node2", "state=resume")
    status, said = study(cluster, sample_root, folder, "--slurm")
    assert f"{killed} FAILED in job {jobs[killed]}" in said and "Submitted 2 cells" in said, said
    again = {name for name, job in jobs_of(folder).items() if job != jobs[name]}
    assert again == {killed, CLASSIFIER.format(1)}
    status, said = study(cluster, sample_root, folder, "--slurm", "--wait")
    assert status == 0 and "Submitted 0 cells" in said, said

    whole = sorted(path.parent.name for path in (tmp_path / "local").glob("*/results.json"))
    assert len(whole) == 4
    for name in whole:
        one, other = tmp_path / "local" / name, folder / name
        assert read_epochs(other) == read_epochs(one)
        ends = [
            without_times(read_results(run)) | {"model": name} for run in (one, other)
        ]  # it names the folder
        assert ends[0] == ends[1]
        weights = [(run / "model" / "model.safetensors").read_bytes() for run in (one, other)]
        assert weights[0] == weights[1]
    assert (folder / "report.csv").read_bytes() == (tmp_path / "local" / "report.csv").read_bytes()


# In place of `accelerate`: it runs until SIGUSR2, and after a restart it ends at once.
LAUNCHER = """
import os, pathlib, signal, sys, time
folder, node = pathlib.Path(sys.argv[0]).parent, os.environ["SLURM_NODEID"]
if "SLURM_RESTART_COUNT" in os.environ:
    (folder / f"again{node}").write_text(" ".join(sys.argv))
    sys.exit()
def save(*_):
    (folder / f"saved{node}").touch()
    sys.exit(143)
signal.signal(signal.SIGUSR2, save)
(folder / f"started{node}").touch()
time.sleep(300)
"""


def test_two_nodes_go_back_into_the_queue_before_the_time_limit_and_resume(cluster, tmp_path):
    (tmp_path / "accelerate").write_text(f"#!{sys.executable}\n{LAUNCHER}")
    (tmp_path / "accelerate").chmod(0o755)
    environment = cluster.environment | {"PATH": f"{tmp_path}:{cluster.environment['PATH']}"}
    batch = SCRIPTS.parent / "accelerate_configs" / "two_nodes.sbatch"
    submit = ["sbatch", "--parsable", "--gres=none", "--cpus-per-task=1", f"--output={tmp_path / 'job.log'}"]
    job = subprocess.run([*submit, batch, "train.py"], env=environment, capture_output=True, text=True).stdout
    job = job.strip()

    def both(what: str) -> bool:
        return all((tmp_path / f"{what}{node}").is_file() for node in (0, 1))

    wait_for(lambda: both("started"))
    cluster.run("scancel", "--signal=USR2", "--batch", job)  # as Slurm does before the time limit
    wait_for(lambda: both("saved") and cluster.queue().get(job) == "PENDING")
    cluster.run("scontrol", "update", f"jobid={job}", "starttime=now")  # not after two minutes
    wait_for(lambda: both("again") and not cluster.queue())
    assert (tmp_path / "again1").read_text().endswith("train.py --resume_from_checkpoint latest")


def test_two_nodes_have_the_losses_of_one_process(cluster, sample_root, tmp_path):
    pretraining = SCRIPTS / "run_mae_pretrain.py"
    flags = [*TINY_VIT, f"--data_dir={sample_root}", "--num_train_epochs=2", "--learning_rate=1e-3"]
    one = [sys.executable, pretraining, *flags, "--per_device_train_batch_size=8"]
    subprocess.run([*one, f"--output_dir={tmp_path / 'one'}"], env=cluster.environment, check=True)

    configuration, log = tmp_path / "cpu.yaml", tmp_path / "job.log"
    text = (SCRIPTS.parent / "accelerate_configs" / "multi_node_fp16.yaml").read_text(encoding="utf-8")
    configuration.write_text(text.replace("mixed_precision: fp16", 'mixed_precision: "no"'), encoding="utf-8")
    submit = ["sbatch", "--wait", "--gres=none", "--cpus-per-task=1", "--time=10", f"--output={log}"]
    job = [SCRIPTS.parent / "accelerate_configs" / "two_nodes.sbatch", pretraining, *flags]
    variables = {
        "CONFIG": str(configuration),
        "PROCESSES": "2",
        "PORT": str(free_ports()[0]),
        "FIRST": "127.0.0.1",  # the names of emulated nodes have no address
        "PATH": f"{Path(sys.executable).parent}:{cluster.environment['PATH']}",
    }
    two = [*submit, *job, "--per_device_train_batch_size=4", f"--output_dir={tmp_path / 'two'}"]
    done = subprocess.run(two, env=cluster.environment | variables, timeout=300, check=False)
    assert done.returncode == 0, log.read_text(encoding="utf-8")[-3000:]
    assert read_results(tmp_path / "two")["images_per_step"] == 8
    for alone, together in zip(read_epochs(tmp_path / "one"), read_epochs(tmp_path / "two"), strict=True):
        assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
        assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-4)


def test_a_study_whose_cells_take_two_nodes_has_the_losses_of_one_process(cluster, sample_root, tmp_path):
    text = (SCRIPTS.parent / "accelerate_configs" / "multi_node_fp16.yaml").read_text(encoding="utf-8")
    text = text.replace("num_processes: 8", "num_processes: 2").replace("fp16", '"no"')
    (tmp_path / "two.yaml").write_text(text, encoding="utf-8")
    one, two = tmp_path / "one", tmp_path / "two"
    flags = ["--seeds=0", "--set", "num_train_epochs=10"]
    status, said = study(cluster, sample_root, one, *flags)
    assert status == 0, said
    on_two = [*flags, "per_device_train_batch_size=4", f"--config_file={tmp_path / 'two.yaml'}", "--slurm"]
    status, said = study(cluster, sample_root, two, *on_two)
    assert status == 0 and "Submitted 2 cells" in said, said
    name = PRETRAINING.format(0)
    job = jobs_of(two)[name]
    wait_for(lambda: has_begun(two / name), seconds=120)
    cluster.run("scancel", "--signal=USR2", job)  # as Slurm does before the time limit
    wait_for(lambda: cluster.queue().get(job) == "PENDING", seconds=120)
    assert not (two / name / "results.json").exists()
    cluster.run("scontrol", "update", f"jobid={job}", "starttime=now")  # not after two minutes
    wait_for(lambda: not cluster.queue(), seconds=300)
    status, said = study(cluster, sample_root, two, *on_two)
    assert status == 0 and "Submitted 0 cells" in said, said
    for run in sorted(path.parent for path in one.glob("*/results.json")):
        assert read_results(two / run.name)["images_per_step"] == 8
        for alone, together in zip(read_epochs(run), read_epochs(two / run.name), strict=True):
            assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-3)

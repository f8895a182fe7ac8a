"""A Slurm cluster of two emulated nodes on this machine, with the daemons of the system's packages."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
MISSING = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=15
GresTypes=gpu
NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=1 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES
"""


class SlurmCluster:
    """Starts the daemons on entering, and stops them on leaving; `environment` is for Slurm's commands."""

    def __enter__(self) -> "SlurmCluster":
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, for the path of a socket
        self.daemons: dict[str, subprocess.Popen] = {}
        try:
            self.start_all()
        except BaseException:  # such as a node that does not come up
            self.__exit__()
            raise
        return self

    def start_all(self) -> None:
        configuration = self.folder / "slurm.conf"
        self.environment = os.environ | {
            "SLURM_CONF": str(configuration),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }
        text = CONFIGURATION.format(folder=self.folder, user=getpass.getuser(), ports=free_ports())
        configuration.write_text(text, encoding="utf-8")
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n", encoding="utf-8")  # a stand-in
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(64))
        key.chmod(0o600)
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        options = ["--foreground", "--force", f"--socket={self.folder}/munge.socket", *files]
        self.start("munged", "munged", *options)
        wait_for((self.folder / "munge.socket").exists)
        self.start("slurmctld", "slurmctld", "-D")
        for node in ("node1", "node2"):
            self.start(node, "slurmd", "-D", "-N", node)
        wait_for(lambda: self.run("sinfo", "--noheader", "--format=%T").split() == ["idle"])

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.daemons)):
            self.stop(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as log:
            self.daemons[name] = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def stop(self, name: str) -> None:
        self.daemons[name].terminate()
        self.daemons.pop(name).wait(timeout=60)

    def run(self, *words: str) -> str:
        """Returns what a command of Slurm prints, also if it fails."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout

    def queue(self) -> dict[str, str]:
        """Returns the state of each job by its id."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split(maxsplit=1) for line in lines)


def free_ports() -> list[int]:
    """Returns three ports, of which the last two follow each other, as a range of slurm.conf does."""
    while True:
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            port = two.getsockname()[1]
            try:
                three.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return [one.getsockname()[1], port, port + 1]


def wait_for(reached: Callable[[], object], *, seconds: float = 60) -> None:
    """Waits until `reached` returns something true. Raises AssertionError after `seconds`."""
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until, f"not reached within {seconds:g} s"
        time.sleep(0.2)

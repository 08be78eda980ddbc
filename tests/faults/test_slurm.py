"""Jobs of `unmask launch slurm` on a real Slurm: a controller and two nodes, all on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ranks import ENGINES, agree, free_ports, records
from runs import ENVIRONMENT, TINY_MODEL, unmask

DAEMONS = ("munged", "slurmctld", "slurmd")
MISSING = [name for name in DAEMONS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(bool(MISSING), reason="Slurm is not installed (Debian: slurmctld slurmd slurm-client munge)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons start jobs as root only"),
]
PATIENCE = 240.0
GRACE = 30
"""Of preemption, in seconds."""
RUN = [
    "mae-vit-tiny",
    *TINY_MODEL,
    "model.depth=1",
    "data.train=bundled:mnist5k/train",
    "train.batch_size=16",
    "train.epochs=2",
    "train.log_every=1",
    "optimizer.warmup_epochs=0.04",
    "output=run",
]
"""500 steps."""


@dataclass
class Slurm:
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**ENVIRONMENT, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def __call__(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *arguments: str, cwd: Path) -> str:
        """Number of the job."""
        said = self(sys.executable, "-m", "unmask", "launch", "slurm", *RUN, *arguments, "--submit", cwd=cwd)
        return said.split()[-1]

    def state(self, job: str) -> dict[str, str]:
        words = self("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ended(self, job: str) -> dict[str, str]:
        until(lambda: self.state(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"))
        return self.state(job)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


def checkpoints(folder: Path) -> list[Path]:
    return list((folder / "run" / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Two nodes; jobs in the partition `first` preempt those in `main`."""
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    (folder / "state").mkdir()
    host = socket.gethostname()
    ports = free_ports(3)
    (folder / "slurm.conf").write_text(f"""\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=main Nodes=n1,n2 Default=YES State=UP PriorityTier=1 GraceTime={GRACE}
PartitionName=first Nodes=n1,n2 State=UP PriorityTier=10
""")
    started = Slurm(folder)
    path = {"PATH": f"{started.environment['PATH']}:/usr/sbin"}
    files = {"key-file": "key", "socket": "munge.socket", "pid-file": "munged.pid"}
    files |= {"log-file": "munged.log", "seed-file": "seed"}
    daemons = [
        ["munged", "--force", *(f"--{option}={folder / name}" for option, name in files.items())],
        ["slurmctld", "-f", str(folder / "slurm.conf")],
        *(["slurmd", "-f", str(folder / "slurm.conf"), "-N", name] for name in ("n1", "n2")),
    ]
    try:
        for command in daemons:
            subprocess.run(command, env=started.environment | path, check=True, capture_output=True, timeout=60)
        until(lambda: "idle n[1-2]" in started("sinfo", "--noheader"))
        yield started
        started("scancel", "--user=root")
    finally:
        for file in folder.glob("*.pid"):
            os.kill(int(file.read_text()), signal.SIGTERM)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, float]]]:
    """The log of the run in one process, which nothing stopped, by engine."""
    logs: dict[str, list[dict[str, float]]] = {}

    def log(engine: str) -> list[dict[str, float]]:
        if engine not in logs:
            folder = tmp_path_factory.mktemp(engine)
            assert unmask("pretrain", *RUN, f"engine={engine}", cwd=folder).returncode == 0
            logs[engine] = records(folder)
        return logs[engine]

    return log


Log = Callable[[str], list[dict[str, float]]]


@pytest.mark.parametrize(
    ("engine", "size", "stop"),
    [
        pytest.param("torch", "1x2", ["scancel", "--signal=TERM"], marks=ENGINES[0].marks),
        pytest.param("torch", "2x1", ["scancel", "--signal=TERM"], marks=ENGINES[0].marks),
        pytest.param("torch", "1x2", ["scontrol", "requeue"], marks=ENGINES[0].marks),
        pytest.param("torch", "1x1", ["scontrol", "requeue"], marks=ENGINES[0].marks),
        pytest.param("mindspore", "1x2", ["scancel", "--signal=TERM"], marks=ENGINES[1].marks),
    ],
)
def test_a_job_that_is_stopped_saves_and_goes_on(
    slurm: Slurm, alone: Log, engine: str, size: str, stop: list[str], tmp_path: Path
) -> None:
    job = slurm.submit(f"engine={engine}", "--size", size, cwd=tmp_path)
    until(lambda: len(records(tmp_path)) >= 50)
    slurm(*stop, job)
    until(lambda: slurm.state(job)["Restarts"] == "1" and any(checkpoints(tmp_path)))  # counted before it is saved
    (saved,) = checkpoints(tmp_path)
    assert 50 <= int(saved.name[5:]) == len(records(tmp_path)) < 500
    state = slurm.ended(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1")
    said = (tmp_path / "run" / f"slurm-{job}.log").read_text(errors="replace")
    assert f"resumed after step {int(saved.name[5:])}\n" in said, said
    agree(records(tmp_path), alone(engine))


def test_a_job_that_is_preempted_saves_and_goes_on(slurm: Slurm, alone: Log, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    job = slurm.submit("--size", "1x2", cwd=tmp_path)
    until(lambda: len(records(tmp_path)) >= 50)
    other = slurm("sbatch", "--partition=first", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert slurm.ended(other.split()[-1])["JobState"] == "COMPLETED"
    assert slurm.ended(job)["JobState"] == "COMPLETED"
    assert "resumed after step" in (tmp_path / "run" / f"slurm-{job}.log").read_text(errors="replace")
    agree(records(tmp_path), alone("torch"))


def test_a_job_whose_time_is_nearly_over_saves_and_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    """2,000 steps, as Slurm looks at its clock every 30 s."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    job = slurm.submit("train.epochs=8", "--size", "1x2", "--time", "60", cwd=tmp_path)
    until(lambda: len(records(tmp_path)) >= 50)
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=5")  # all of them its last
    until(lambda: slurm.state(job)["Restarts"] == "1")
    assert len(records(tmp_path)) < 2000
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    assert slurm.ended(job)["JobState"] == "COMPLETED"
    assert [record["step"] for record in records(tmp_path)] == [*range(1, 2001)]


def test_a_job_that_is_cancelled_saves_and_is_not_started_again(slurm: Slurm, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    job = slurm.submit("--size", "1x2", cwd=tmp_path)
    until(lambda: len(records(tmp_path)) >= 50)
    slurm("scancel", job)
    state = slurm.ended(job)
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0")
    (saved,) = checkpoints(tmp_path)
    assert int(saved.name[5:]) == len(records(tmp_path)) < 500
    assert slurm("squeue", "--noheader") == ""


@pytest.mark.parametrize(
    ("engine", "size"),
    [
        pytest.param("torch", "2x1", marks=ENGINES[0].marks),
        pytest.param("mindspore", "1x2", marks=ENGINES[1].marks),
    ],
)
def test_a_lost_process_is_started_again(slurm: Slurm, alone: Log, engine: str, size: str, tmp_path: Path) -> None:
    job = slurm.submit("train.checkpoint_every=0.1", f"engine={engine}", "--size", size, cwd=tmp_path)
    until(lambda: len(records(tmp_path)) >= 60)
    rank = {"torch": "RANK", "mindspore": "MS_NODE_ID"}[engine]
    victims = [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if (environment := _environment(process)).get("SLURM_JOB_ID") == job and environment.get(rank) == "1"
    ]
    os.kill(min(victims), signal.SIGKILL)
    state = slurm.ended(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "0")
    assert "resumed after step" in (tmp_path / "run" / f"slurm-{job}.log").read_text(errors="replace")
    agree(records(tmp_path), alone(engine))


def _environment(process: Path) -> dict[str, str]:
    try:
        return dict(line.split("=", 1) for line in (process / "environ").read_text().split("\0") if "=" in line)
    except (OSError, ValueError):
        return {}

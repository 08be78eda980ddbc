"""From a job to the platform: its text, and the platform's own command that takes it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from unmask.errors import ConfigError
from unmask.files import check_free, write_text
from unmask.launch import kubernetes, modelarts, sky, slurm
from unmask.launch.job import Job, Options

PLATFORMS: dict[str, ModuleType] = {"slurm": slurm, "sky": sky, "kubernetes": kubernetes, "modelarts": modelarts}


def written(platform: str, job: Job, options: Options) -> str:
    """The text of the job, for this platform. Raises ConfigError, also for an option that it does not take."""
    takes = PLATFORMS[platform].TAKES
    for field in fields(options):
        if field.name not in takes and getattr(options, field.name) is not None:
            other = " and ".join(name for name, each in PLATFORMS.items() if field.name in each.TAKES)
            raise ConfigError(f"--{field.name} is for {other}; {platform} takes {', '.join(f'--{n}' for n in takes)}")
    return PLATFORMS[platform].write(job, options)


def submit_with(platform: str, out: Path) -> str:
    """What to do with a job that is written."""
    command: tuple[str, ...] | None = PLATFORMS[platform].SUBMIT
    return f"{out} is written" + ("" if command is None else f"; submit it with: {shlex.join([*command, str(out)])}")


def submit(platform: str, text: str, out: Path | None = None) -> str:
    """Write the job to `out`, and have the platform's command take it; returns what that said.

    Raises ConfigError where there is no such command, or it refuses the job.
    """
    command: tuple[str, ...] | None = PLATFORMS[platform].SUBMIT
    if command is None:
        raise ConfigError(f"{platform} has no command to submit with; docs/clusters.md says what to do with the job")
    if shutil.which(command[0]) is None:
        raise ConfigError(
            f"--submit needs {command[0]}, which is not on the PATH; write the job with --out, for where it is"
        )
    with TemporaryDirectory() as folder:
        file = out or Path(folder) / "job"
        if out is None:
            file.write_text(text, encoding="utf-8")
        done = subprocess.run([*command, str(file.absolute())], capture_output=True, text=True)
    if done.returncode != 0:
        raise ConfigError(f"{command[0]} refused the job: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout.strip()


def write_file(text: str, out: Path) -> None:
    """Raises ConfigError for a folder, and for a file that is there already unless it is this job; OSError."""
    if out.is_dir():
        raise ConfigError(f"--out={out} is a folder; name a file")
    raw = text.encode()
    if out.is_file() and out.stat().st_size == len(raw) and out.read_bytes() == raw:
        return
    check_free(out)
    write_text(out, text)

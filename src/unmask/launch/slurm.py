"""Slurm: a batch script, submitted with `sbatch`."""

from __future__ import annotations

import re
import shlex

from unmask.errors import ConfigError
from unmask.launch.job import GRACE, RESTARTS, Job, Options, shell_path

TAKES = ("partition", "time")
SUBMIT = ("sbatch",)

# Runs once on each node, as the step of the job. Slurm signals every process of the step at once. msrun dies of that
# while those that it started are saving, and Slurm would kill them with the step. So this ends when nobody is left who
# holds the pipe, which all have as their standard input.
_NODE = """
trap "stopped=yes" TERM
exec 3> >(trap "" TERM; exec cat)
reader=$!
{command} <&3 3>&- &
launcher=$!
exec 3>&-
while wait $launcher; status=$?; kill -0 $launcher 2>/dev/null; do :; done
if [ "$stopped" ] && [ $status -ne 0 ]; then
    while kill -0 $reader 2>/dev/null; do wait $reader; done
    exit 143
fi
exit $status
"""

_SCRIPT = """\
#!/bin/bash
# unmask {title}
{directives}
run={run}
log=$run/slurm-$SLURM_JOB_ID.log
mkdir -p -- "$run" && echo "output: $log" && exec >>"$log" 2>&1 || exit
{environment}

# On each node. Ends when all processes there have saved, with 143 if they were told to stop.
node={node}
for attempt in {attempts}; do
    srun --kill-on-bad-exit=0 --wait=0 --cpus-per-task={cpus} bash -c "$node" node {words}
    status=$?
    case $status in
    0) exit ;;
    143) # preempted, or the time is nearly over; `scancel` ends this script first
        scontrol requeue "$SLURM_JOB_ID"
        exit 143
        ;;
    esac # a process was lost, or there is a mistake: from the last checkpoint again
done
exit $status
"""


def write(job: Job, options: Options) -> str:
    """The script. Raises ConfigError."""
    if options.partition is not None and not re.fullmatch(r"[\w.,-]+", options.partition):
        raise ConfigError(f"--partition={options.partition} is not a name, or several with commas")
    if options.time is not None and _seconds(options.time) <= 2 * GRACE:
        raise ConfigError(f"--time={options.time} is too short: its last {GRACE // 60} minutes are for saving")
    directives = {
        "job-name": job.name,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(job.cpus),
        **{"cuda": {"gpus-per-node": str(job.cards)}, "npu": {"gres": f"npu:{job.cards}"}}.get(job.device, {}),
        **({"partition": options.partition} if options.partition else {}),
        **({"time": options.time} if options.time else {}),
        "requeue": "",
        "open-mode": "append",
        "signal": f"TERM@{GRACE}",
    }
    words = len(job.words)
    command = job.command(
        rank='"$SLURM_NODEID"',
        address='"$first"',
        port='"$port"',
        logs='"$run/msrun"',
    )
    environment = ["export run first=$(hostname) port=$((20000 + SLURM_JOB_ID % 10000))"]
    if job.config.engine == "torch":
        environment.append(f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={GRACE}")
    return _SCRIPT.format(
        title=job.title,
        directives="\n".join(f"#SBATCH --{name}{f'={value}' if value else ''}" for name, value in directives.items()),
        run=shell_path(str(job.folder)),
        environment="\n".join(environment),
        node=shlex.quote(_NODE.format(command=" ".join([*command[:-words], '"$@"']))),
        attempts=" ".join(map(str, range(1 + RESTARTS))),
        cpus=job.cpus,
        words=" ".join(command[-words:]),
    )


def _seconds(time: str) -> int:
    """Of a time as Slurm writes it: MIN, MIN:SEC, H:MIN:SEC, DAY-H, DAY-H:MIN or DAY-H:MIN:SEC. Raises ConfigError."""
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", time):
        raise ConfigError(f"--time={time} is not a time of Slurm's, such as 30, 12:00:00 or 2-12")
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash:
        parts = [0, *parts] if len(parts) < 3 else parts
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

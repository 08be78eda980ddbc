"""SkyPilot: the YAML file of a managed job, which is started again elsewhere when a machine is taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from unmask.errors import ConfigError
from unmask.launch.job import RESTARTS, Job, Options

TAKES = ("accelerator",)
SUBMIT = ("sky", "jobs", "launch", "--yes", "--detach-run")


def write(job: Job, options: Options) -> str:
    """The YAML file. Raises ConfigError."""
    job.check_reachable("SkyPilot's machines")
    resources: dict[str, Any] = {"cpus": f"{job.cpus}+", "job_recovery": {"max_restarts_on_errors": RESTARTS}}
    if job.device != "cpu":
        if options.accelerator is None:
            raise ConfigError("--accelerator NAME is missing: what a machine has, such as H100; or set device=cpu")
        resources["accelerators"] = {options.accelerator: job.cards}
    elif options.accelerator is not None:
        raise ConfigError(f"--accelerator={options.accelerator} with device=cpu; leave out one of the two")
    command = job.command(rank='"$SKYPILOT_NODE_RANK"', address='"$first"')
    task = {
        "name": job.name,
        "num_nodes": job.nodes,
        "resources": resources,
        "setup": f"pip install 'unmask[{job.config.engine},remote]'",
        "run": f'first=$(head -n 1 <<<"$SKYPILOT_NODE_IPS")\n{" ".join(command)}\n',
    }
    if job.is_file:
        if Path(job.recipe).is_absolute() or ".." in Path(job.recipe).parts:
            raise ConfigError(f"recipe {job.recipe}: give it from a folder above it, which goes along to the machines")
        task["workdir"] = "."
    return f"# unmask {job.title}\n{dumped(task)}"


def dumped(values: dict[str, Any]) -> str:
    """As YAML, in this order, with text of several lines as it is."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)

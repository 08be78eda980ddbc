"""Huawei Cloud's ModelArts: the body of `POST /v2/{project_id}/training-jobs`, for an image of one's own."""

from __future__ import annotations

import json
import shlex

from unmask.errors import ConfigError
from unmask.launch.job import RESTARTS, Job, Options

TAKES = ("image", "flavor")
SUBMIT = None


def write(job: Job, options: Options) -> str:
    """The JSON. Raises ConfigError."""
    for option in TAKES:
        if getattr(options, option) is None:
            what = {"image": "a container image in SWR with unmask in it", "flavor": "the id of the machines' kind"}
            raise ConfigError(f"--{option} is missing: {what[option]}")
    job.check_reachable("ModelArts")
    # Each node runs this once, outside of any shell.
    command = job.command(rank='"$VC_TASK_INDEX"', address='"${VC_WORKER_HOSTS%%,*}"')
    body = {
        "kind": "job",
        "metadata": {
            "name": job.name,
            "description": f"unmask {job.title}"[:256],
            "annotations": {"fault-tolerance/job-retry-num": str(RESTARTS)},
        },
        "algorithm": {
            "engine": {"image_url": options.image},
            "command": shlex.join(["bash", "-c", " ".join(command)]),
        },
        "spec": {
            "resource": {"flavor_id": options.flavor, "node_count": job.nodes},
            "log_export_path": {"obs_url": f"obs://{job.output.partition('://')[2].rstrip('/')}/modelarts-logs/"},
        },
    }
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"

"""Kubernetes with Kubeflow Trainer 2.2 or newer: a TrainJob of the runtime torch-distributed."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from unmask.errors import ConfigError
from unmask.launch.job import GRACE, Job, Options
from unmask.launch.sky import dumped

TAKES = ("image", "volume")
SUBMIT = ("kubectl", "apply", "-f")
_CARDS = {"cuda": "nvidia.com/gpu", "npu": "huawei.com/Ascend910"}


def write(job: Job, options: Options) -> str:
    """The manifest. Raises ConfigError."""
    if job.config.engine != "torch":
        raise ConfigError(
            f"engine={job.config.engine}: the runtime torch-distributed starts torchrun; set engine=torch"
        )
    if options.image is None:
        raise ConfigError("--image NAME is missing: a container image with unmask[torch] in it")
    # Loader processes and NCCL need more shared memory than the 64 MiB of a container.
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    path = None
    if options.volume is not None:
        claim, _, path = options.volume.partition(":")
        if not claim or not PurePosixPath(path).is_absolute():
            raise ConfigError(f"--volume={options.volume} is not of the form CLAIM:PATH, such as shared:/data")
        volumes.append({"name": "volume", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "volume", "mountPath": path})
    job.check_reachable("Kubernetes", below=path)
    resources = {"cpu": str(job.cpus)}
    if job.device in _CARDS:
        resources[_CARDS[job.device]] = str(job.cards)
    pod = {
        "terminationGracePeriodSeconds": GRACE,
        "volumes": volumes,
        "containers": [{"name": "node", "volumeMounts": mounts}],
    }
    node = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    manifest = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": job.name},
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "ClusterTrainingRuntime",
                "name": "torch-distributed",
            },
            "trainer": {
                "image": options.image,
                "numNodes": job.nodes,
                "numProcPerNode": job.cards,
                # The runtime tells torchrun the rest by variables.
                "command": ["torchrun", "-m", "unmask"],
                "args": [_literal(word) for word in job.words],
                "env": [{"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": str(GRACE)}],
                "resourcesPerNode": {"requests": resources, "limits": resources},
            },
            "runtimePatches": [
                {
                    "manager": "unmask",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [node]}}},
                }
            ],
        },
    }
    return f"# unmask {job.title}\n{dumped(manifest)}"


def _literal(word: str) -> str:
    """As an argument in which Kubernetes, which replaces $(NAME) by a variable, finds none: $$ is one $."""
    return word.replace("$", "$$")

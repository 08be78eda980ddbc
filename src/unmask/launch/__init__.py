"""Jobs for clusters: what Slurm, SkyPilot, Kubernetes and ModelArts need to be told to train a recipe on many cards.

Each platform has a file that writes its job. The processes are started by torchrun or msrun; whom the platform stops
saves, and whom it starts again goes on. What remains for a platform to decide stays its own: nothing is scheduled here.
"""

from unmask.launch.job import Job, Options, prepare
from unmask.launch.plan import plan
from unmask.launch.submit import PLATFORMS, submit, submit_with, write_file, written

__all__ = ["PLATFORMS", "Job", "Options", "plan", "prepare", "submit", "submit_with", "write_file", "written"]

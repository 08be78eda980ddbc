"""Checkpoints: named tensors on disk that either engine can take over, and their exchange with other tools."""

from unmask.checkpoint.folder import Checkpoint, read_checkpoint, read_weights
from unmask.checkpoint.store import CheckpointStore, load_newest
from unmask.files import RunLock

__all__ = ["Checkpoint", "CheckpointStore", "RunLock", "load_newest", "read_checkpoint", "read_weights"]

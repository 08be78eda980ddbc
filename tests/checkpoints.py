"""What tests ask of the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path

from unmask.checkpoint.folder import Checkpoint, folder_name
from unmask.checkpoint.store import CheckpointStore, best_step


def save_durably(store: CheckpointStore, checkpoint: Checkpoint, *, metric: float | None = None) -> None:
    """Save, and return when it is on disk. Raises CheckpointError."""
    store.save(checkpoint, metric=metric)
    store.wait()


def best_of(store: CheckpointStore) -> Path | None:
    """Folder of the best checkpoint."""
    step = best_step(store.root, store.steps())
    return None if step is None else store.root / folder_name(step)

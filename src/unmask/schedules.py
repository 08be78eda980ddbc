"""Learning-rate schedule and parameter groups: pure functions of the step and of the parameter's name.

`step` counts the updates applied so far: the first update of a run is step 0. `total_steps` and `warmup_steps` may be
fractional, because an epoch need not be a whole number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_NEVER_DECAYED = {"cls_token", "reg_token", "mask_token", "pos_embed", "decoder_pos_embed"}


def peak_lr(base_lr: float, batch_size: int) -> float:
    """The linear scaling rule: `base_lr` is meant for a global batch of 256 images."""
    return base_lr * batch_size / 256


def learning_rate(step: int, *, total_steps: float, warmup_steps: float, peak: float, minimum: float) -> float:
    """Learning rate of the update that follows `step` updates.

    Rises linearly from 0, which the first update gets, to `peak` at `warmup_steps`; then falls along half a cosine to
    `minimum` at `total_steps` and stays there. With epoch = step / steps per epoch this is the official MAE formula.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    if step >= total_steps:
        return minimum
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * progress))


def layer_scale(name: str, depth: int, decay: float) -> float:
    """Factor on the learning rate of the parameter `name` in a Vision Transformer of `depth` blocks.

    decay^(depth + 1 - id), where the id is 0 for everything before the first block, i + 1 for block i, and depth + 1
    for everything after the last.
    """
    return decay ** (depth + 1 - layer_of(name, depth))


def layer_of(name: str, depth: int) -> int:
    """The id of `layer_scale`."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    if name in {"cls_token", "reg_token", "pos_embed"} or name.startswith(("patch_embed.", "norm_pre.")):
        return 0
    return depth + 1


def is_decayed(name: str, shape: Sequence[int]) -> bool:
    """Whether weight decay applies: not to biases and other vectors, tokens or position embeddings."""
    return len(shape) > 1 and not name.endswith(".bias") and name not in _NEVER_DECAYED

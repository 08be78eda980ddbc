"""Seconds per pretraining step of the MindSpore and the PyTorch engine on the CPU, interleaved in one process.

    python benchmarks/engines.py --size tiny --batch 16
    python benchmarks/engines.py --size base --batch 8

The same recipe, weights and batch; the whole step in fp32: forward, loss, backward, gradient norm, AdamW. A round
runs each engine once; figures are medians over the rounds and the least, so a machine that is busy now and then slows
both alike. `first step` is what a start costs: compiling the graphs, and one step.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from unmask.config.load import load_config
from unmask.config.schema import ModelConfig
from unmask.data.batch import Batch
from unmask.data.masking import random_mask
from unmask.engines import create_engine
from unmask.engines.base import Engine, EngineState
from unmask.environment import cores, versions
from unmask.objectives.base import create_objective
from unmask.objectives.mae import MaeSection

ENGINES = ("torch", "mindspore")
LR = 1e-4


def main() -> None:
    arguments = parse_arguments()
    found = versions()
    print(f"torch {found['torch']}, mindspore {found['mindspore']}, {cores()} cores")
    print(f"ViT-{arguments.size}, batch {arguments.batch}, {arguments.rounds} rounds")
    overrides = ["device=cpu", f"train.batch_size={arguments.batch}"]
    config = load_config(f"mae-vit-{arguments.size}", overrides)
    batch = random_batch(config.model, arguments.batch)
    weights = create_objective(config).initial_weights(seed=0)
    engines: dict[str, Engine] = {}
    first: dict[str, float] = {}
    for name in ENGINES:
        engines[name] = create_engine(config.model_copy(update={"engine": name}))
        engines[name].load(EngineState(weights))
        first[name] = seconds(engines[name], batch)
    rounds = [{name: seconds(engine, batch) for name, engine in engines.items()} for _ in range(arguments.rounds)]
    print(f"{'':12}{'first step':>12}{'median':>12}{'least':>12}")
    for name in ENGINES:
        steps = [r[name] for r in rounds]
        print(f"{name:12}{first[name]:10.2f} s{statistics.median(steps):10.3f} s{min(steps):10.3f} s")
    ratios = sorted(r["mindspore"] / r["torch"] for r in rounds)
    print(f"mindspore / torch: median {statistics.median(ratios):.2f}, rounds from {ratios[0]:.2f} to {ratios[-1]:.2f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=("tiny", "small", "base", "large", "huge"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def random_batch(model: ModelConfig, size: int) -> Batch:
    rng = np.random.default_rng(0)
    masks = [random_mask(rng, model.num_patches, MaeSection().num_keep(model)) for _ in range(size)]
    return Batch(
        images=rng.integers(0, 256, (size, *model.image_size, model.channels), dtype=np.uint8),
        index=np.arange(size),
        inputs={
            "ids_keep": np.stack([keep for keep, _ in masks]),
            "ids_mask": np.stack([mask for _, mask in masks]),
        },
    )


def seconds(engine: Engine, batch: Batch) -> float:
    start = time.perf_counter()
    engine.read(engine.train_step([batch], {"lr": LR}))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

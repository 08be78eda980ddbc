"""CPU seconds until a linear probe is as good as after a whole run of transformers' ViTMAE, for recipes of ours.

    python benchmarks/to_accuracy.py --train cifar10/train --test cifar10/test --seconds 300 --share 0.25 \
        --arm objective.name=mae --arm "objective.name=cross_mae objective.predict_ratio=0.25"

transformers trains `ViTMAEForPreTraining` with fused AdamW (vectors and tokens not decayed), images by torchvision out
of torch's DataLoader, in whichever of fp32 and bf16 (autocast) a step of it takes less time here. Ours is --recipe, or
the recipe that an --arm begins with, with the settings of that --arm; each gets --share of its seconds. Alike are
network, first weights (MAE's own), batch, peak learning rate, warm-up, cosine, decay, crops and flips, but for what an
arm sets. The same loss on the same weights and masks is checked first. Loading and the update count as time; reading
out and starting do not.

All train in one process in turns, so that what else the machine does slows all alike; what counts is CPU seconds. A
run is --seconds long and not so many steps: the schedule goes by the share of its time that is used up. At each
quarter of its time an arm is read out: the fast probe on the mean token of a balanced draw of --labels training images
a class, judged on --judges test images a class, the same for all.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
import transformers

from step import check_same_work, their_model
from unmask.config.load import load_config
from unmask.config.schema import Config
from unmask.data.loader.pipeline import train_batches
from unmask.data.sources import Source, open_source
from unmask.data.sources.subset import subset
from unmask.engines import create_engine, with_precision
from unmask.engines.base import EngineState, Tensors
from unmask.engines.torch_engine.engine import DTYPES
from unmask.evaluate.fast_probe import probe
from unmask.evaluate.inference import Model
from unmask.interchange.transformers_names import FAMILIES
from unmask.objectives.base import create_objective
from unmask.schedules import is_decayed, learning_rate, peak_lr

MARKS = 4
"""Times that an arm is read out."""
TURNS = 40
FINE = 10_000
"""Steps that the schedule divides a run into."""
THEIRS = "transformers"


@dataclasses.dataclass
class Arm:
    config: Config
    seconds: float
    step: Callable[[float], object]
    """Load a batch and train on it, when this share of the time is used up."""
    weights: Callable[[], Tensors]
    used: float = 0.0
    steps: int = 0
    accuracy: list[float] = dataclasses.field(default_factory=list[float])

    def train(self, share: float) -> None:
        while self.used < share * self.seconds:
            begun = time.process_time()
            self.step(self.used / self.seconds)
            self.used += time.process_time() - begun
            self.steps += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", required=True, help="a folder of class folders")
    parser.add_argument("--test", required=True, help="likewise")
    parser.add_argument("--recipe", default="cifar10-mae")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of all arms")
    parser.add_argument("--arm", action="append", default=[], metavar="'KEY=VALUE ...'", help="one of ours")
    parser.add_argument("--seconds", type=float, default=300, help="CPU seconds of transformers' run")
    parser.add_argument("--share", type=float, default=0.25, help="of these that each of ours gets")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--judges", type=int, default=200)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    for seed in options.seeds:
        compare(options, seed)


def compare(options: argparse.Namespace, seed: int) -> None:
    train = open_source(options.train, key="--train", labels=True)
    read_out = subset(train, options.labels, seed)
    judges = subset(open_source(options.test, key="--test", labels=True), options.judges, seed)
    shared = [*options.set, f"seed={seed}", "device=cpu", "data.workers=0"]
    arms = {THEIRS: theirs(load(options.recipe, shared), options.train, options.seconds)}
    for settings in options.arm:
        own = settings.split()
        recipe = options.recipe if "=" in own[0] else own.pop(0)
        config = load(recipe, [*shared, *own])
        arms[settings] = ours(config, train, options.share * options.seconds)
    reading = 0.0
    for turn in range(1, TURNS + 1):
        for arm in arms.values():
            arm.train(turn / TURNS)
        if turn % (TURNS // MARKS) == 0:
            begun = time.process_time()
            for name, arm in arms.items():
                with Model(arm.config, arm.weights(), None, 128) as model:
                    arm.accuracy.append(probe(model, read_out, judges, seed=seed).accuracy)
                print(
                    f"seed {seed}, {name}: {arm.used:.0f} CPU s, {arm.steps} steps, {arm.accuracy[-1]:.1%}", flush=True
                )
            reading += time.process_time() - begun
    tell(arms, seed, reading)


def load(recipe: str, settings: list[str]) -> Config:
    return with_precision(load_config(recipe, settings))


def rate(config: Config, share: float) -> float:
    return learning_rate(
        int(share * FINE),
        total_steps=FINE,
        warmup_steps=FINE * config.optimizer.warmup_epochs / config.train.epochs,
        peak=peak_lr(config.optimizer.base_lr, config.train.batch_size),
        minimum=config.optimizer.min_lr,
    )


# --- the arms ---


def ours(config: Config, source: Source, seconds: float) -> Arm:
    objective, engine = create_objective(config), create_engine(config)
    engine.load(EngineState(objective.initial_weights(config.seed), buffers=objective.initial_buffers(config.seed)))
    batches = train_batches(
        source,
        needs=objective.needs(training=True),
        model=config.model,
        data=config.data,
        augment=config.augment,
        seed=config.seed,
        batch_size=config.train.batch_size,
        accumulate=1,
        start_step=0,
        stop_step=10**9,
    )

    def step(share: float) -> object:
        hyper = {"lr": rate(config, share), **objective.hyper(int(share * FINE), FINE)}
        return engine.train_step(next(batches), hyper)

    return Arm(config, seconds, step, lambda: engine.state().weights)


def theirs(config: Config, folder: str, seconds: float) -> Arm:
    """In the precision in which a step of it is faster; the config, by which it is read out, is that of ours."""
    check_same_work(config)
    model = their_model(config)
    optimizer = config.optimizer
    groups: dict[float, list[torch.nn.Parameter]] = {optimizer.weight_decay: [], 0.0: []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            named = name.rsplit(".", 1)[-1].replace("position_embeddings", "pos_embed")
            groups[optimizer.weight_decay if is_decayed(named, tuple(weight.shape)) else 0.0].append(weight)
    adamw = torch.optim.AdamW(
        [{"params": weights, "weight_decay": decay} for decay, weights in groups.items()],
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        fused=True,
    )
    batches = their_batches(config, folder)

    def step(share: float, dtype: torch.dtype) -> object:
        for group in adamw.param_groups:
            group["lr"] = rate(config, share)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = model(pixel_values=next(batches)).loss
        loss.backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.detach()

    took = {name: seconds_of(lambda dtype=dtype: step(0.0, dtype)) for name, dtype in DTYPES.items() if name != "fp16"}
    fastest = min(took, key=lambda name: took[name])
    print(f"transformers, CPU s a step: {', '.join(f'{n} {s:.3f}' for n, s in took.items())}; it gets {fastest}")
    return Arm(config, seconds, lambda share: step(share, DTYPES[fastest]), lambda: as_ours(model))


def seconds_of(step: Callable[[], object]) -> float:
    """At a learning rate of 0, which leaves the weights as they are."""

    def once() -> float:
        begun = time.process_time()
        step()
        return time.process_time() - begun

    once()
    return statistics.median(once() for _ in range(5))


def as_ours(model: torch.nn.Module) -> Tensors:
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return FAMILIES["vit_mae"].ours(THEIRS, tensors)[0]


def their_batches(config: Config, folder: str) -> Iterator[torch.Tensor]:
    data, images = config.data, torchvision.transforms
    prepared = images.Compose(
        [
            images.RandomResizedCrop(
                config.model.image_size, data.crop_scale, interpolation=images.InterpolationMode.BICUBIC
            ),
            images.RandomHorizontalFlip(data.flip),
            images.ToTensor(),
            images.Normalize(data.mean, data.std),
        ]
    )
    generator = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)
    loader: Any = torch.utils.data.DataLoader(
        torchvision.datasets.ImageFolder(folder, prepared),
        config.train.batch_size,
        shuffle=True,
        drop_last=True,
        generator=generator,
    )
    while True:
        for pixel_values, _ in loader:
            yield pixel_values


# --- the outcome ---


def tell(arms: dict[str, Arm], seed: int, reading: float) -> None:
    goal, whole = arms[THEIRS].accuracy[-1], arms[THEIRS].seconds
    quarters = " | ".join(f"{mark}/{MARKS}" for mark in range(1, MARKS + 1))
    print(f"\nseed {seed}; reading out took {reading:.0f} CPU s")
    print(f"| | CPU s | images | ms an image | probe at {quarters} | CPU s to {goal:.1%} | of transformers' |")
    print("|---" * (6 + MARKS) + "|")
    for name, arm in arms.items():
        images = arm.steps * arm.config.train.batch_size
        reached = [mark for mark, accuracy in enumerate(arm.accuracy, 1) if accuracy >= goal]
        took = min(reached) / MARKS * arm.seconds if reached else None
        cells = [name, f"{arm.used:.0f}", f"{images:,}", f"{1e3 * arm.used / images:.2f}"]
        cells += [f"{accuracy:.1%}" for accuracy in arm.accuracy]
        cells += ["not reached", ""] if took is None else [f"{took:.0f}", f"{took / whole:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

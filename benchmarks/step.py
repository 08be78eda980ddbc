"""Images per second of one pretraining step, ours and transformers' ViTMAEForPreTraining, interleaved in one process.

    python benchmarks/step.py --recipe mae-vit-base --batch 32 --precision fp32,bf16

The same weights, images and masks give the same loss in fp32: that is checked first. Then both do the whole step:
forward, loss, backward, AdamW (torch's fused one for transformers; bf16 by autocast there), on the same images with the
same share of patches hidden. `--compile` adds each under torch.compile; the ratio that counts
is that of each side's best. transformers finds its images normalised on the device, ours come as bytes from the host.

A round runs each contender once; figures are medians over the rounds, so a machine that is busy now and then slows all
alike; ratios are of one round each, with their quartiles. On the CPU seconds are those of the processor that a thread
took, of which other processes have no part. `of matrix rate` is the share of the time that the step's matrix products
would take alone: they are timed in each round too, in their own shapes. On the CPU both profit from the allocator
settings that our engine makes.

`--memory`, in place of all that: the most memory that a process of either has had after a step, and what an image adds
to it, by a step with a quarter of the batch before it.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from unmask.config.load import load_config
from unmask.config.schema import Config, DataConfig, ModelConfig
from unmask.data.batch import Batch
from unmask.data.masking import random_mask
from unmask.engines import create_engine
from unmask.engines.base import EngineState
from unmask.engines.torch_engine.device import pick_device
from unmask.engines.torch_engine.engine import DTYPES
from unmask.interchange.stored_model import OF_DATA, StoredModel
from unmask.interchange.transformers import write_transformers
from unmask.objectives.base import create_objective
from unmask.objectives.mae import MaeSection

LR = 1e-4
MAE = MaeSection()
TOLERANCE = 1e-4
"""Relative, of the losses of the same work."""


def main() -> None:
    arguments = parse_arguments()
    device = pick_device(arguments.device)
    print(f"{device_name(device)}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{arguments.recipe}, batch {arguments.batch}")
    if not arguments.memory:
        print(f"median of {arguments.steps} rounds")
        check_same_work(load_config(arguments.recipe, [f"device={device}"]))
    for precision in arguments.precision.split(","):
        overrides = [f"train.precision={precision}", f"device={device}", f"train.batch_size={arguments.batch}"]
        config = load_config(arguments.recipe, overrides)
        if arguments.memory:
            compare_memory(config)
        else:
            compare(config, arguments.steps, ("eager", "compiled") if arguments.compile else ("eager",))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="mae-vit-base", help="of masked autoencoding")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32,bf16", help="comma-separated")
    parser.add_argument("--steps", type=int, default=7, help="rounds that count, after two that do not")
    parser.add_argument("--compile", action="store_true", help="also both under torch.compile (minutes)")
    parser.add_argument("--memory", action="store_true", help="of the CPU, in place of seconds")
    return parser.parse_args()


# --- the contenders ---


def compare(config: Config, rounds: int, modes: Sequence[str]) -> None:
    batch = random_batch(config.model, config.train.batch_size)
    products = {"unmask": our_products(config.model), "transformers": their_products(config.model)}
    shapes = {layer.shape for layers in products.values() for layer in layers}
    contenders: dict[Hashable, Callable[[], object]] = {}
    for mode in modes:
        (contenders["unmask", mode],) = our_steps(config, [batch], mode == "compiled")
        (contenders["transformers", mode],) = their_steps(config, [batch], mode == "compiled")
    for shape in shapes:
        contenders[shape] = products_of_layer(shape, config)
    times = interleaved(contenders, rounds, torch.device(config.device))
    seconds = {name: statistics.median(each) for name, each in times.items()}

    print(f"{config.train.precision:24} images/s   ms/step   GFLOP/image   of matrix rate")
    for mode in modes:
        for side, layers in products.items():
            took = seconds[side, mode]
            alone = sum(layer.share * seconds[layer.shape] for layer in layers)
            gflop = sum(layer.flop for layer in layers) / 1e9
            rate = config.train.batch_size / took
            print(
                f"  {side} {mode:{21 - len(side)}} {rate:8.2f}  {1e3 * took:8.1f}  {gflop:12.1f}  {alone / took:14.0%}"
            )
    for mode in modes:
        print(f"  ratio {mode}: {ratio(times, mode, mode)}")
    if len(modes) > 1:
        best = {side: min(modes, key=lambda mode: seconds[side, mode]) for side in products}
        print(f"  ratio of the best modes: {ratio(times, best['transformers'], best['unmask'])}")
    sys.stdout.flush()


def compare_memory(config: Config) -> None:
    batch = config.train.batch_size
    print(f"{config.train.precision:24} MB, batch {batch}   MB/image")
    each: list[float] = []
    for side in ("unmask", "transformers"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            _, small, large = pool.apply(peaks, (side, config, (1, batch // 4, batch)))
        each.append((large - small) / (batch - batch // 4))
        print(f"  {side:22} {large / 1e6:12.0f}  {each[-1] / 1e6:9.1f}", flush=True)
    print(f"  ratio of the memory of an image: {each[1] / each[0]:.2f}", flush=True)


def peaks(side: str, config: Config, sizes: Sequence[int]) -> list[int]:
    """The most bytes that this process has had after a step of each size; after the first there are the moments."""
    batches = [random_batch(config.model, size) for size in sizes]
    found: list[int] = []
    for run in (our_steps if side == "unmask" else their_steps)(config, batches, False):
        run()
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    return found


def ratio(times: Mapping[Hashable, Sequence[float]], theirs: str, ours: str) -> str:
    pairs = zip(times["transformers", theirs], times["unmask", ours], strict=True)
    low, middle, high = np.quantile([theirs / ours for theirs, ours in pairs], (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def our_steps(config: Config, batches: Sequence[Batch], compiled: bool) -> list[Callable[[], object]]:
    config = config.model_copy(update={"train": config.train.model_copy(update={"compile": compiled})})
    engine = create_engine(config)
    engine.load(EngineState(create_objective(config).initial_weights(seed=0)))
    return [functools.partial(engine.train_step, [batch], {"lr": LR}) for batch in batches]


def their_steps(config: Config, batches: Sequence[Batch], compiled: bool) -> list[Callable[[], object]]:
    device = torch.device(config.device)
    model = their_model(config).to(device)
    optimizer = config.optimizer
    adamw = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad),
        lr=LR,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
    dtype = DTYPES[config.train.precision]
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step(pixel_values: torch.Tensor) -> object:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = forward(pixel_values=pixel_values).loss
        loss.backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.detach()

    return [functools.partial(step, their_images(batch, config.data).to(device)) for batch in batches]


def their_model(config: Config) -> torch.nn.Module:
    """ViTMAEForPreTraining with our first weights."""
    objective = create_objective(config)
    weights, section = objective.initial_weights(config.seed), config.objective.model_dump()
    images = {name: getattr(config.data, name) for name in OF_DATA}
    stored = StoredModel(weights, config.model.model_dump(), None, "unmask", data=images, objective=section)
    with tempfile.TemporaryDirectory(prefix="unmask-") as folder:
        place = Path(folder) / "model"
        write_transformers(place, stored)
        model: torch.nn.Module = transformers.ViTMAEForPreTraining.from_pretrained(place)
    return model.train()


def their_images(batch: Batch, data: DataConfig) -> torch.Tensor:
    images = (batch.images / np.float32(255) - np.array(data.mean, np.float32)) / np.array(data.std, np.float32)
    return torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous()


def check_same_work(config: Config) -> None:
    """The same loss on the same weights, images and masks, in fp32."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": "fp32"})})
    batch = random_batch(config.model, 4)
    engine = create_engine(config)
    engine.load(EngineState(create_objective(config).initial_weights(config.seed)))
    ours = engine.read(engine.train_step([batch], {"lr": 0.0}))["loss"]
    noise = np.ones((4, config.model.num_patches), np.float32)  # patches of the least noise are kept
    np.put_along_axis(noise, batch.inputs["ids_keep"].astype(np.int64), 0, 1)
    device, images = torch.device(config.device), their_images(batch, config.data)
    with torch.no_grad():
        model = their_model(config).to(device)
        theirs = float(model(pixel_values=images.to(device), noise=torch.from_numpy(noise).to(device)).loss)
    if abs(ours - theirs) > TOLERANCE * abs(theirs):
        raise SystemExit(f"not the same work: losses {ours} and {theirs}")
    print(f"the same loss on the same weights, images and masks: {ours:.5f} and {theirs:.5f}")


def random_batch(model: ModelConfig, size: int) -> Batch:
    rng = np.random.default_rng(0)
    masks = [random_mask(rng, model.num_patches, MAE.num_keep(model)) for _ in range(size)]
    ids_keep, ids_mask = (np.stack(ids) for ids in zip(*masks, strict=True))
    images = rng.integers(0, 256, (size, *model.image_size, model.channels), dtype=np.uint8)
    return Batch(images, np.arange(size), {"ids_keep": ids_keep, "ids_mask": ids_mask})


# --- matrix products of a step ---


@dataclass(frozen=True)
class Products:
    """The matrix products of `count` equal layers for one image: forward, input gradient, weight gradient.

    Attention's two products per head count too, at the rate of the layer that feeds them.
    """

    shape: tuple[int, int, int]
    """Tokens, fan in, fan out."""
    count: int = 1
    input_gradient: bool = True
    attention: int = 0
    """Multiply-adds of attention that go with one layer, forward."""

    @property
    def flop(self) -> float:
        return 2 * self.count * ((3 if self.input_gradient else 2) * self.layer + 3 * self.attention)

    @property
    def share(self) -> float:
        """Work in units of the three products of one such layer."""
        return self.flop / (6 * self.layer)

    @property
    def layer(self) -> int:
        tokens, fan_in, fan_out = self.shape
        return tokens * fan_in * fan_out


def blocks(tokens: int, width: int, mlp_ratio: float, count: int) -> list[Products]:
    hidden = int(width * mlp_ratio)
    return [
        Products((tokens, width, 3 * width), count, attention=2 * tokens * tokens * width),
        Products((tokens, width, width), count),
        Products((tokens, width, hidden), count),
        Products((tokens, hidden, width), count),
    ]


def our_products(model: ModelConfig) -> list[Products]:
    """The last decoder block computes the masked tokens only, the others as context."""
    kept, tokens, masked = MAE.num_keep(model), model.num_patches + 1, model.num_patches - MAE.num_keep(model)
    D, E, hidden = model.width, model.decoder_width, int(model.decoder_width * model.mlp_ratio)
    return [
        Products((kept, model.patch_dim, D), input_gradient=False),
        *blocks(kept + 1, D, model.mlp_ratio, model.depth),
        Products((kept + 1, D, E)),
        *blocks(tokens, E, model.mlp_ratio, model.decoder_depth - 1),
        Products((masked, E, E), 2, attention=masked * tokens * E),  # queries and projection of the last block
        Products((tokens, E, 2 * E)),
        Products((masked, E, hidden)),
        Products((masked, hidden, E)),
        Products((masked, E, model.patch_dim)),
    ]


def their_products(model: ModelConfig) -> list[Products]:
    kept, tokens = MAE.num_keep(model), model.num_patches + 1
    return [
        Products((tokens - 1, model.patch_dim, model.width), input_gradient=False),
        *blocks(kept + 1, model.width, model.mlp_ratio, model.depth),
        Products((kept + 1, model.width, model.decoder_width)),
        *blocks(tokens, model.decoder_width, model.mlp_ratio, model.decoder_depth),
        Products((tokens, model.decoder_width, model.patch_dim)),
    ]


def products_of_layer(shape: tuple[int, int, int], config: Config) -> Callable[[], object]:
    """The three products of one such layer, on their own."""
    tokens, fan_in, fan_out = shape
    rows, dtype = tokens * config.train.batch_size, DTYPES[config.train.precision]
    x, weight, gradient = (
        torch.randn(size, device=config.device).to(dtype)
        for size in ((rows, fan_in), (fan_out, fan_in), (rows, fan_out))
    )
    return lambda: (x @ weight.T, gradient @ weight, gradient.T @ x)


# --- timing ---


def interleaved(
    contenders: Mapping[Hashable, Callable[[], object]], rounds: int, device: torch.device
) -> dict[Hashable, list[float]]:
    """Seconds of each contender in each round."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in contenders}
    for _ in range(2 + rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(run, device))
    return {name: times[2:] for name, times in seconds.items()}


def timed(run: Callable[[], object], device: torch.device) -> float:
    clock, threads = (time.process_time, torch.get_num_threads()) if device.type == "cpu" else (time.perf_counter, 1)
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return (clock() - start) / threads


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()

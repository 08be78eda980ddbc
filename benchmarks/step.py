"""Images per second of one pretraining step, ours and transformers' ViTMAEForPreTraining, interleaved in one process.

    python benchmarks/step.py --size base --batch 32 --precision fp32,bf16

Both do the whole step: forward, loss, backward, AdamW (torch's fused one for transformers; bf16 by autocast there), on
the same images with the same share of patches hidden. `--compile` adds each under torch.compile; the ratio that counts
is that of each side's best. transformers finds its images normalised on the device, ours come as bytes from the host.

A round runs each contender once; figures are medians over the rounds, so a machine that is busy now and then slows all
alike. `of matrix rate` is the share of the time that the step's matrix products would take alone: they are timed in
each round too, in their own shapes.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import transformers

from unmask.config.load import load_config
from unmask.config.schema import Config, ModelConfig
from unmask.data.batch import Batch
from unmask.data.masking import random_mask
from unmask.engines.base import EngineState
from unmask.engines.torch_engine.engine import DTYPES, TorchEngine, pick_device
from unmask.init import initial_weights

LR = 1e-4


def main() -> None:
    arguments = parse_arguments()
    device = pick_device(arguments.device)
    print(f"{device_name(device)}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"ViT-{arguments.size}, batch {arguments.batch}, median of {arguments.steps} rounds")
    for precision in arguments.precision.split(","):
        overrides = [f"train.precision={precision}", f"device={device}", f"train.batch_size={arguments.batch}"]
        config = load_config(f"mae-vit-{arguments.size}", overrides)
        compare(config, arguments.steps, [False, True] if arguments.compile else [False])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="base", choices=("tiny", "small", "base", "large", "huge"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32,bf16", help="comma-separated")
    parser.add_argument("--steps", type=int, default=7, help="rounds that count, after two that do not")
    parser.add_argument("--compile", action="store_true", help="also both under torch.compile")
    return parser.parse_args()


# --- the contenders ---


def compare(config: Config, rounds: int, compile_modes: list[bool]) -> None:
    batch = random_batch(config.model, config.train.batch_size)
    contenders: dict[str, Callable[[], object]] = {}
    for compiled in compile_modes:
        suffix = " compiled" if compiled else ""
        contenders[f"unmask{suffix}"] = our_step(config, batch, compiled)
        contenders[f"transformers{suffix}"] = their_step(config, batch, compiled)
    ours, theirs = our_products(config.model), their_products(config.model)
    probes = distinct(ours + theirs)
    for (rows, fan_in, fan_out), name in probes.items():
        size = rows * config.train.batch_size
        contenders[name] = products_of_layer(size, fan_in, fan_out, DTYPES[config.train.precision], config.device)
    seconds = interleaved(contenders, rounds, torch.device(config.device))

    print(f"{config.train.precision:18} images/s   ms/step   GFLOP/image   of matrix rate")
    rate = {}
    for name in contenders:
        if name in probes.values():
            continue
        products = ours if name.startswith("unmask") else theirs
        rate[name] = config.train.batch_size / seconds[name]
        alone = sum(product.share * seconds[probes[product.shape]] for product in products)
        gflop = sum(product.flop for product in products) / 1e9
        share = alone / seconds[name]
        print(f"  {name:16} {rate[name]:8.2f}  {1e3 * seconds[name]:8.1f}  {gflop:12.1f}  {share:14.0%}")
    for suffix in ("", " compiled")[: len(compile_modes)]:
        print(f"  ratio{suffix}: {rate[f'unmask{suffix}'] / rate[f'transformers{suffix}']:.2f}")
    if len(compile_modes) > 1:
        best = {
            side: max(r for name, r in rate.items() if name.startswith(side)) for side in ("unmask", "transformers")
        }
        print(f"  ratio of the best modes: {best['unmask'] / best['transformers']:.2f}")


def our_step(config: Config, batch: Batch, compiled: bool) -> Callable[[], object]:
    config = config.model_copy(update={"train": config.train.model_copy(update={"compile": compiled})})
    engine = TorchEngine(config)
    engine.load(EngineState(initial_weights(config.model, "pretrain", seed=0)))
    return functools.partial(engine.train_step, [batch], lr=LR)


def their_step(config: Config, batch: Batch, compiled: bool) -> Callable[[], object]:
    device = torch.device(config.device)
    model = their_model(config.model).to(device).train()
    optimizer = config.optimizer
    adamw = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad),
        lr=LR,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
    images = (batch.images / np.float32(255) - np.float32(config.data.mean)) / np.float32(config.data.std)
    pixel_values = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous().to(device)
    dtype = DTYPES[config.train.precision]
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step() -> object:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = forward(pixel_values=pixel_values).loss
        loss.backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def their_model(model: ModelConfig) -> transformers.ViTMAEForPreTraining:
    config = transformers.ViTMAEConfig(
        image_size=model.image_size[0],
        patch_size=model.patch_size,
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=int(model.width * model.mlp_ratio),
        layer_norm_eps=1e-6,
        mask_ratio=model.mask_ratio,
        norm_pix_loss=model.norm_pix_loss,
        decoder_hidden_size=model.decoder_width,
        decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_heads,
        decoder_intermediate_size=int(model.decoder_width * model.mlp_ratio),
    )
    return transformers.ViTMAEForPreTraining(config)


def random_batch(model: ModelConfig, size: int) -> Batch:
    rng = np.random.default_rng(0)
    masks = [random_mask(rng, model.num_patches, model.num_keep) for _ in range(size)]
    ids_keep, ids_mask = (np.stack(ids) for ids in zip(*masks, strict=True))
    images = rng.integers(0, 256, (size, *model.image_size, model.channels), dtype=np.uint8)
    return Batch(images, np.arange(size), ids_keep, ids_mask)


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
    kept, tokens, masked = model.num_keep, model.num_patches + 1, model.num_patches - model.num_keep
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
    kept, tokens = model.num_keep, model.num_patches + 1
    return [
        Products((tokens - 1, model.patch_dim, model.width), input_gradient=False),
        *blocks(kept + 1, model.width, model.mlp_ratio, model.depth),
        Products((kept + 1, model.width, model.decoder_width)),
        *blocks(tokens, model.decoder_width, model.mlp_ratio, model.decoder_depth),
        Products((tokens, model.decoder_width, model.patch_dim)),
    ]


def distinct(products: list[Products]) -> dict[tuple[int, int, int], str]:
    return {product.shape: f"products {product.shape}" for product in products}


def products_of_layer(rows: int, fan_in: int, fan_out: int, dtype: torch.dtype, device: str) -> Callable[[], object]:
    x, weight, gradient = (
        torch.randn(shape, device=device).to(dtype) for shape in ((rows, fan_in), (fan_out, fan_in), (rows, fan_out))
    )
    return lambda: (x @ weight.T, gradient @ weight, gradient.T @ x)


# --- timing ---


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each contender."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(2 + rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(run, device))
    return {name: statistics.median(times[2:]) for name, times in seconds.items()}


def timed(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()

"""A picture of what bounds a pretraining step on this processor: its operations under the roofs of arithmetic and of
memory.

    python benchmarks/roofline.py --size base --batch 8 --precision bf16 --out docs/pictures/roofline.png

The roofs are measured: the rate of a large matrix product, and of a copy that no cache holds. A point is an operation
the step alone, in its shapes: multiplications and additions for each byte it reads and writes (each tensor once),
and how fast that ran; the legend has its share of the time of all. One thread, CPU seconds, medians, all in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from step import our_products
from unmask.config.load import load_config
from unmask.engines.torch_engine.engine import DTYPES
from unmask.models import torch_layers


class Point(NamedTuple):
    name: str
    run: Callable[[], object]
    flop: float
    bytes: float
    count: float
    """How many there are in a step, forward pass alone."""


def points(size: str, batch: int, dtype: torch.dtype) -> list[Point]:
    model = load_config(f"mae-vit-{size}").model
    kept, tokens, item = model.num_patches // 4 + 1, model.num_patches + 1, dtype.itemsize
    found: list[Point] = []
    seen: dict[tuple[int, int, int], float] = {}
    for layer in our_products(model):
        seen[layer.shape] = seen.get(layer.shape, 0) + layer.count
    for (rows, fan_in, fan_out), count in seen.items():
        x, w = (torch.randn(shape).to(dtype) for shape in ((batch * rows, fan_in), (fan_out, fan_in)))
        moved = item * (x.numel() + w.numel() + batch * rows * fan_out)
        found.append(
            Point("product", lambda x=x, w=w: F.linear(x, w), 2 * batch * rows * fan_in * fan_out, moved, count)
        )
    for rows, width, heads, depth in (
        (kept, model.width, model.heads, model.depth),
        (tokens, model.decoder_width, model.decoder_heads, model.decoder_depth),
    ):
        x = torch.randn(batch, rows, width).to(dtype)
        hidden = torch.randn(batch, rows, 4 * width).to(dtype)
        q = torch.randn(batch, heads, rows, width // heads, requires_grad=True).to(dtype)
        scores = 2 * batch * heads * rows * rows
        found += [
            Point(
                "LayerNorm", lambda x=x: F.layer_norm(x, x.shape[-1:]), 8 * x.numel(), 2 * item * x.numel(), 2 * depth
            ),
            Point("GELU", lambda h=hidden: F.gelu(h), 10 * hidden.numel(), 2 * item * hidden.numel(), depth),
            Point("sum", lambda x=x: x + x, x.numel(), 3 * item * x.numel(), 2 * depth),
            Point(
                "attention",
                lambda q=q: torch_layers.attention(q, q, q),
                2 * scores * width // heads + 5 * scores / 2,
                4 * item * q.numel(),
                depth,
            ),
        ]
    return found


def seconds(run: Callable[[], object]) -> float:
    begun, times = time.process_time(), 0
    while time.process_time() - begun < 0.02:
        run()
        times += 1
    return (time.process_time() - begun) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="base", choices=("tiny", "small", "base"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("roofline.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = DTYPES[options.precision]
    side, copied = 2048, torch.zeros(1 << 26)
    square, target = torch.randn(side, side).to(dtype), torch.empty_like(copied)
    roofs = [
        Point("", lambda: square @ square, 2 * side**3, 0, 0),
        Point("", lambda: target.copy_(copied), 0, 2 * copied.nbytes, 0),
    ]
    found = [*roofs, *points(options.size, options.batch, dtype)]
    rounds = [[seconds(point.run) for point in found] for _ in range(options.rounds)]
    times = [statistics.median(of_point) for of_point in zip(*rounds, strict=True)]
    peak, bandwidth = roofs[0].flop / times[0], roofs[1].bytes / times[1]
    draw(found[2:], times[2:], peak, bandwidth, options)


def draw(found: list[Point], times: list[float], peak: float, bandwidth: float, options: argparse.Namespace) -> None:
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.loglog([0.05, peak / bandwidth, 1e4], [0.05 * bandwidth / 1e9, peak / 1e9, peak / 1e9], color="0.4")
    total = sum(point.count * took for point, took in zip(found, times, strict=True))
    print(
        f"roofs: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s",
        "| operation | FLOP/byte | GFLOP/s | of the time |",
        sep="\n",
    )
    print("|---|---|---|---|")
    for kind in dict.fromkeys(point.name for point in found):
        of_kind = [(p, took) for p, took in zip(found, times, strict=True) if p.name == kind]
        x, y = ([p.flop / p.bytes for p, _ in of_kind], [p.flop / took / 1e9 for p, took in of_kind])
        share = sum(p.count * took for p, took in of_kind) / total
        axis.scatter(x, y, s=28, label=f"{kind}, {share:.0%} of the time")
        print(f"| {kind} | {min(x):.1f} to {max(x):.1f} | {min(y):.1f} to {max(y):.1f} | {share:.0%} |")
    axis.set(xlabel="FLOP for each byte", ylabel="GFLOP/s")
    axis.set_title(
        f"ViT-{options.size}, batch {options.batch}, {options.precision}, forward pass, one thread", fontsize=10
    )
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()

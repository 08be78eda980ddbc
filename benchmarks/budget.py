"""On paper: which of step, copy, decoding and storage binds a run, and what a full run costs in time, money and energy.

    python benchmarks/budget.py [--recipe mae-vit-base] [--mfu 0.4] [--epochs 800]

The step is that of `unmask launch --check` (counted by shapes, at a share of the card's peak); the rest is arithmetic
on the assumptions below, of which only the CPU's figures were measured (docs/log.md). Nothing here was run on a card.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from unmask.config.load import load_config
from unmask.launch.plan import planned

GOAL = 8515
"""Images/s of the model zoo's 64 Ascend 910, ViT-B."""
CORE_MS = {
    "JPEG files": 1.81,
    "pack, short side 256": 0.85,
    "pack, augment.repeats=4": 0.43,
    "GPU decoding of files": 0.10,
}
"""CPU milliseconds an image: decode, crop, resize, flip, batch, masks. Measured on one core with AVX-512, but the last:
assumed, for reading a file and handing it to the card."""
KILOBYTES = {
    "JPEG files": 110,
    "pack, short side 256": 30,
    "pack, augment.repeats=4": 7.5,
    "GPU decoding of files": 110,
}
"""Read for an image that is shown: ImageNet's files on average, and a quarter of that in a pack."""
STORAGE = 3e9
"""Bytes a second of one NVMe drive, shared by the cards of a machine."""
LINK = 25e9
"""Bytes a second from pinned memory to a card over PCIe 5 x16, two fifths of what is printed on it."""
PICTURE = 224 * 224 * 3
"""Bytes of an image as it goes to the card."""


@dataclass(frozen=True)
class Machine:
    name: str
    rate: float
    """Images/s of ViT-B pretraining."""
    dollars: float
    """An hour, list prices of 2026 rounded: put in your own."""
    watts: float
    """With host and cooling."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="mae-vit-base")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of a card's peak that a step reaches")
    parser.add_argument("--epochs", type=float, default=800)
    options = parser.parse_args()
    one, eight = (step_rate(options.recipe, cards, options.mfu) for cards in (1, 8))
    print(f"{options.recipe} in bf16 on H100, {options.mfu:.0%} of the peak; goal {GOAL:,} images/s on one card")
    binding(one, 1, 16)
    binding(eight, 8, 128)
    binding(eight, 8, 16)
    print()
    costs(
        [
            Machine("32 cores with AVX-512 bf16 (2.63 images/s each, measured on one)", 32 * 2.63, 1.5, 400),
            Machine("1 H100", one, 3.0, 1000),
            Machine("8 H100", eight, 24.0, 8000),
            Machine("64 Ascend 910 (the zoo's figure)", GOAL, 64 * 1.5, 64 * 450),
        ],
        options.epochs,
    )


def step_rate(recipe: str, cards: int, mfu: float) -> float:
    """Images/s of the step, with its exchanges, were the images always there."""
    config = load_config(recipe, ["train.precision=bf16", f"train.batch_size={512 * cards}"])
    return 512 * cards / planned(config, 1, cards, "h100", mfu).total


def stages(step: float, cards: int, cores: int, form: str) -> dict[str, float]:
    """Images/s of each stage alone; they overlap, so the slowest is the rate of all."""
    return {
        "step": step,
        "copy": cards * LINK / PICTURE,
        "decoding": cores / CORE_MS[form] * 1e3,
        "storage": STORAGE / (1e3 * KILOBYTES[form]),
    }


def binding(step: float, cards: int, cores: int) -> None:
    print(f"\n{cards} H100, {cores} cores\n\n| images | step | copy | decoding | storage | all together | binds |")
    print("|---|---|---|---|---|---|---|")
    for form in CORE_MS:
        rates = stages(step, cards, cores, form)
        slowest = min(rates, key=lambda stage: rates[stage])
        print(f"| {form} |", " | ".join(f"{rate:,.0f}" for rate in [*rates.values(), rates[slowest]]), f"| {slowest} |")


def costs(machines: list[Machine], epochs: float) -> None:
    """Hours = images x epochs / rate / 3600; money and energy follow."""
    print(f"{epochs:g} epochs, the images always there\n")
    print("| images | machine | hours | dollars | kWh |\n|---|---|---|---|---|")
    for images in (100_000, 1_000_000, 10_000_000):
        for machine in machines:
            hours = images * epochs / machine.rate / 3600
            spent, energy = hours * machine.dollars, hours * machine.watts / 1000
            print(f"| {images:,} | {machine.name} | {hours:,.1f} | {spent:,.0f} | {energy:,.0f} |")


if __name__ == "__main__":
    main()

"""A cluster planned where none is at hand: memory of a card and bytes exchanged counted, the time of a step modelled.

What is counted is a step of one process of the run, by shapes, with the others only said to be there
(`engines.base.Account`). What is modelled rests on the figures of `CARDS` and on the shares below, which the output
names; measure one step on one card, give its share with `mfu`, and the rest of the model is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask import plugins
from unmask.config.load import load_config, task_of
from unmask.config.schema import Config
from unmask.data.batch import Batch, check_shares
from unmask.data.loader.pipeline import train_batches
from unmask.engines import create_engine, engine_kind, with_precision
from unmask.engines.base import Account
from unmask.errors import ConfigError, EngineError
from unmask.objectives.base import create_objective
from unmask.report.progress import progress, say, table

MFU = 0.4
"""Share of a card's peak that a step reaches."""
LINKS = 0.7
"""Share of a link's speed that exchanges reach."""
HOP_WITHIN, HOP_ACROSS = 5e-6, 15e-6
"""Seconds that a message takes to another card, beside its bytes: of the same node, of another."""
UPDATE_BYTES = 28
"""Memory traffic of AdamW for each weight in fp32: gradient, weight and two moments read, all but the first written."""
RESERVE = 0.1
"""Share of a card's memory that tensors must leave free: the driver's, libraries' workspaces, fragments."""
WORLDS = (8, 64, 256, 1024)
"""Numbers of cards that are planned beside the one that is asked for."""
CLASSES = 1000
"""Of a classifier whose number of classes only its data would tell."""
COLUMNS = (
    *("size", "images", "memory GB", "exchanged GB"),
    *("compute ms", "exchange ms", "step ms", "images/s", "of ideal"),
)
"""`images`: of a card at a time; `exchange ms`: if nothing were computed meanwhile; `of ideal`: if it took no time."""


@dataclass(frozen=True)
class Card:
    """An accelerator as its maker describes it; bytes and seconds."""

    memory: float
    tflops: Mapping[str, float]
    """Dense matrix products, by `train.precision`, in 10^12 a second."""
    memory_speed: float
    within: float
    """To the cards of its node, each way."""
    across: float
    """To other nodes, each way."""


CARDS = {
    "h100": Card(80e9, {"fp32": 67, "bf16": 989, "fp16": 989}, 3.35e12, 450e9, 50e9),
    "a100": Card(80e9, {"fp32": 19.5, "bf16": 312, "fp16": 312}, 2.0e12, 300e9, 25e9),
    "ascend-910b": Card(64e9, {"fp32": 70, "bf16": 280, "fp16": 280}, 1.2e12, 196e9, 25e9),
}


@dataclass(frozen=True)
class Step:
    """A training step on `nodes` of `cards` each, planned."""

    nodes: int
    cards: int
    images: int
    """A micro-batch of one card."""
    account: Account
    compute: float
    """Seconds of forward and backward pass."""
    exchange: float
    """Seconds of all exchanges, were nothing computed meanwhile."""
    update: float
    total: float

    @property
    def world(self) -> int:
        return self.nodes * self.cards


def plan(
    recipe: str, settings: Sequence[str], nodes: int, cards: int, *, card: str | None = None, mfu: float = MFU
) -> None:
    """Print what a training step takes on this cluster, and on others of such nodes from 8 to 1,024 cards.

    Raises ConfigError when the batch cannot be shared among the processes, and, after the table, when a step of the
    size that was asked for does not fit into the memory of the card; EngineError without PyTorch.
    """
    config = load_config(recipe, settings)
    task_of(config)
    card = card or ("ascend-910b" if config.engine == "mindspore" else "h100")
    config = with_precision(config, "bf16" if config.engine == "torch" else "fp16")
    if config.objective.labelled and config.model.num_classes is None:
        say(f"model.num_classes is not set, and data.train is not looked at: planned with {CLASSES} classes")
        config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": CLASSES})})
    train = config.train
    check_shares(train.batch_size, train.accumulate, nodes * cards, config.augment)
    sizes = sorted({nodes, *(world // cards for world in WORLDS if world % cards == 0)})
    possible = [each for each in sizes if _is_shared(config, each * cards)]
    steps: dict[int, Step] = {}
    with progress("count", total=len(possible), unit="step") as bar:
        for each in possible:
            steps[each] = planned(config, each, cards, card, mfu)
            bar.update()
    asked = steps[nodes]
    say(
        f"{nodes}x{cards} {card}: {asked.world} process{'es' * (asked.world > 1)}, "
        f"{'FSDP2' if train.shard else 'DDP'}, {train.precision}, train.batch_size={train.batch_size} in micro-batches "
        f"of {asked.images}, {asked.account.weights / 1e6:.1f} M weights"
    )
    table([_row(step, train.batch_size) for step in steps.values()], COLUMNS)
    if impossible := [f"{each}x{cards}" for each in sizes if each not in steps]:
        say(f"not {', '.join(impossible)}: train.batch_size={train.batch_size} cannot be shared among so many")
    for line in _assumptions(config, card, asked, mfu):
        say(line)
    if not _fits(asked.account, card):
        raise ConfigError(
            f"a step takes {asked.account.peak_bytes / 1e9:.1f} GB of a card, {card} has "
            f"{CARDS[card].memory / 1e9:.0f}, a tenth of it kept free: {_remedy(config, asked.world, card)}"
        )


def planned(config: Config, nodes: int, cards: int, card: str, mfu: float = MFU) -> Step:
    """One row of the plan. Raises ConfigError when the batch cannot be shared among the processes."""
    world, size = nodes * cards, CARDS[card]
    batches = blank_batches(config, world)
    account = account_of(config, batches, world)
    compute = account.flops / (size.tflops[config.train.precision] * 1e12 * mfu)
    seconds = {kind: exchange_seconds(kind, account, nodes, cards, size) for kind in account.exchanged_bytes}
    # With FSDP2 half of the all-gathers are the forward pass's; everything else is exchanged in the last backward pass.
    gathers = seconds.get("all-gather", 0.0) / 2
    calls = max(sum(account.exchanges.values()), 1)
    last = compute / config.train.accumulate
    forward = overlapped(last / 3, gathers, calls)
    backward = overlapped(last * 2 / 3, sum(seconds.values()) - gathers, calls)
    weights = account.weights / (world if config.train.shard else 1)
    update = UPDATE_BYTES * weights / size.memory_speed
    total = compute - last + forward + backward + update
    images = len(batches[0])
    return Step(nodes, cards, images, account, compute, sum(seconds.values()), update, total)


def account_of(config: Config, batches: Sequence[Batch], world: int, rank: int = 0) -> Account:
    """A step of one of `world` processes, counted. `rank` 0 keeps the most where weights are shared out."""
    config = config.model_copy(
        update={
            "engine": "torch",
            "device": "cpu",
            "train": config.train.model_copy(update={"compile": False}),
        }
    )
    objective = create_objective(config)
    if objective.engine_around is not None:
        raise ConfigError(f"objective.name={config.objective.name} trains its head on the host; it cannot be planned")
    hyper = {"lr": 0.0, **objective.hyper(0, 1)}
    kind = engine_kind("torch")
    assert kind.account is not None
    try:
        count = plugins.resolve(kind.account)
    except ModuleNotFoundError:
        raise EngineError(
            f"a step is counted with PyTorch, whichever engine trains: pip install '{kind.install}'"
        ) from None
    return count(partial(create_engine, config), batches, hyper, rank, world)


@dataclass(frozen=True)
class _Blank:
    """As many images as there are classes, of which only the size matters."""

    shape: tuple[int, ...]
    dtype: str
    classes: int | None
    parent: None = field(default=None)

    def __len__(self) -> int:
        return max(self.classes or 1, 2)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return None if self.classes is None else np.arange(len(self)) % self.classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return None if self.classes is None else tuple(map(str, range(self.classes)))

    def read(self, index: int) -> NDArray[Any]:
        return np.zeros(self.shape, self.dtype)

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return ""


def blank_batches(config: Config, world: int) -> list[Batch]:
    """The micro-batches of a step of one of `world` processes: two images as training makes them, and copies."""
    model, accumulate, needs = config.model, config.train.accumulate, create_objective(config).needs(training=True)
    shape, classes = (*model.image_size, model.channels), model.num_classes if config.objective.labelled else None
    blank = _Blank(shape, config.data.dtype, classes)
    steps = train_batches(
        blank,
        needs=needs,
        model=model,
        data=config.data.model_copy(update={"workers": 0}),
        augment=config.augment,
        seed=config.seed,
        batch_size=2 * accumulate,
        accumulate=accumulate,
        start_step=0,
        stop_step=1,
        unlabelled=blank if needs.unlabelled else None,
    )
    with closing(steps):
        made = next(steps)
    rows = config.train.batch_size // (world * accumulate)
    of_step = () if needs.step is None else needs.step(config.seed, 0)
    return [
        Batch(
            images=np.zeros((rows, *batch.images.shape[1:]), batch.images.dtype),
            index=np.arange(rows),
            inputs={n: a if n in of_step else np.repeat(a[:1], rows, axis=0) for n, a in batch.inputs.items()},
        )
        for batch in made
    ]


def exchange_seconds(kind: str, account: Account, nodes: int, cards: int, card: Card) -> float:
    """Seconds of all exchanges of a kind: rings within each node, then across the nodes for each card's part."""
    passes = 2 if kind == "all-reduce" else 1  # it scatters and gathers
    size = account.exchanged_bytes[kind]
    within = size * (cards - 1) / cards / (card.within * LINKS)
    across = size / cards * (nodes - 1) / nodes / (card.across * LINKS)
    hops = (cards - 1) * HOP_WITHIN + log2(nodes) * HOP_ACROSS
    return passes * (within + across + account.exchanges[kind] * hops)


def overlapped(compute: float, exchange: float, parts: int) -> float:
    """Two pipelines of `parts`, the second of which begins when the first part of the other is there."""
    return max(compute, exchange) + min(compute, exchange) / parts


def _is_shared(config: Config, world: int) -> bool:
    try:
        check_shares(config.train.batch_size, config.train.accumulate, world, config.augment)
    except ConfigError:
        return False
    return True


def _row(step: Step, batch_size: int) -> list[Any]:
    account = step.account
    return [
        f"{step.nodes}x{step.cards}",
        step.images,
        round(account.peak_bytes / 1e9, 1),
        round(sum(account.exchanged_bytes.values()) / 1e9, 2),
        round(step.compute * 1e3, 1),
        round(step.exchange * 1e3, 1),
        round(step.total * 1e3, 1),
        round(batch_size / step.total),
        f"{(step.compute + step.update) / step.total:.0%}",
    ]


def _assumptions(config: Config, card: str, asked: Step, mfu: float) -> list[str]:
    size, train = CARDS[card], config.train
    rate = train.batch_size / asked.total
    mindspore = ", with PyTorch in MindSpore's place" if config.engine == "mindspore" else ""
    return [
        f"Counted: memory of tensors, exchanges and operations of a step{mindspore}, eagerly, of one process.",
        f"Assumed: {size.tflops[train.precision]:g} TFLOPS in {train.precision}, of which a step reaches {mfu:.0%} "
        f"(--mfu, a card alone tells); {size.within / 1e9:g} GB/s within a node and {size.across / 1e9:g} across for "
        f"each card, of which exchanges reach {LINKS:.0%}; {HOP_WITHIN * 1e6:g} and {HOP_ACROSS * 1e6:g} µs a hop; "
        "exchanges go on beside what is computed, but for one part of them; images are there in time.",
        f"Images: each node must load {rate / asked.nodes:,.0f} a second; `images/s` of the run says what it does.",
    ]


def _fits(account: Account, card: str) -> bool:
    return account.peak_bytes <= (1 - RESERVE) * CARDS[card].memory


def _remedy(config: Config, world: int, card: str) -> str:
    """What to do about a step that does not fit: settings that take less memory, as few as make it fit."""
    settings: dict[str, Any] = {}
    for key, value in _savings(config, world):
        settings[key] = value
        train = config.train.model_copy(update=settings)
        saving = config.model_copy(update={"train": train})
        if _fits(account_of(saving, blank_batches(saving, world), world), card):
            return "set " + " ".join(f"train.{name}={str(value).lower()}" for name, value in settings.items())
    return "no setting makes it fit; take more cards, cards with more memory or a smaller model"


def _savings(config: Config, world: int) -> Iterator[tuple[str, Any]]:
    """Fields of `train` that take less memory, those that cost the least time first."""
    if config.engine == "torch":  # the only one that has them
        if world > 1:
            yield "shard", True
        yield "activation_checkpointing", True
    accumulate = 2 * config.train.accumulate
    while _is_shared(
        config.model_copy(update={"train": config.train.model_copy(update={"accumulate": accumulate})}), world
    ):
        yield "accumulate", accumulate
        accumulate *= 2

"""The attentive probe: a linear classifier on patch tokens that learns where to look.

The linear probe sees the plain mean of an image's patch tokens. Here each of a few queries gives the patches weights,
by a softmax of its product with them, and pools its own part of the features: one query for as many features as a head
of the network's attention has. That is efficient probing (Psomas et al. 2025, arXiv 2506.10178) without its matrix of
values, which few labels cannot afford. Queries of zero are the linear probe. There the fit starts, and how far the
queries may go from there is the strength of an L2 penalty. Cross-validation on the training images chooses it, and the
linear probe where looking does not pay: with few labels, or where what tells the classes apart is all over the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.subset import subset
from unmask.evaluate.fast_probe import FEW, Floats, LinearHead, Tried, fit_head, folds_to_hold_out, judged
from unmask.evaluate.features import Features, features_of, labelled
from unmask.evaluate.inference import Images, Model
from unmask.metrics import classification_sums, log_softmax
from unmask.report.progress import progress

LOOSENESS = tuple(10.0**-exponent for exponent in range(1, 6))
"""What is tried: t in the linear probe's loss + t/2 |Q|^2, from 0.1 to 1e-5."""
_PART = 64
"""Images whose tokens are worked on at a time."""
_STEPS = 100

Single = np.float32
"""Half the memory and time of double precision."""
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class AttentiveHead:
    """Queries on patch tokens, and a linear classifier on what they pool."""

    linear: LinearHead
    """On the pooled features, standardised as those of the plain mean are."""
    queries: Floats
    """(Q, D) on standardised tokens; each pools D / Q features."""

    def logits(self, tokens: Features, rows: NDArray[np.int64]) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
        """(B, C) and the classes (B,), part by part, of tokens (N, patches * D)."""
        for part in _parts(rows):
            v_BLD = _standardised(self.linear, tokens, part)
            pooled_BD, _, _ = _pool(v_BLD, self.queries)
            yield pooled_BD @ self.linear.weight + self.linear.bias, tokens.labels[part]


@dataclass(frozen=True)
class AttentiveResult:
    accuracy: float
    """On the validation images, which had no say in anything."""
    linear: Tried
    """The linear probe with the strength of its own that was chosen, on the images of the next."""
    tried: tuple[Tried, ...]
    """Strengths of the penalty on the queries; empty where no class has two images."""
    strength: float | None
    """The one that was chosen; None where it is the linear probe."""


def attentive_probe(
    model: Model,
    train: Images,
    val: Images,
    *,
    labels_per_class: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
) -> AttentiveResult:
    """Accuracy on `val` of the attentive probe on the frozen model's features of `train`; arguments as for `probe`."""
    source = labelled(train, "train", model.config.data.dtype)
    if labels_per_class is not None:
        source = subset(source, labels_per_class, seed)
    network = model.config.model
    with features_of(model, source, val, cache, pool="patches") as (tokens, val_tokens, classes):
        return judge_attentive(tokens, val_tokens, classes, width=network.width, queries=network.heads, seed=seed)


def judge_attentive(
    train: Features, val: Features, classes: int, *, width: int, queries: int, seed: int = 0
) -> AttentiveResult:
    """The same on tokens (N, patches * width). Rows whose label is -1 do not count; errors as for `fit_probe`."""
    head, linear, tried = fit_attentive(train, classes, width=width, queries=queries, seed=seed)
    rows = np.flatnonzero(val.labels >= 0)
    right = sum(classification_sums(logits, labels)["top1"] for logits, labels in head.logits(val, rows))
    looks = head.queries.any()
    strength = min(tried, key=lambda one: one.loss).strength if looks else None
    return AttentiveResult(right / len(rows), linear, tried, strength)


def fit_attentive(
    tokens: Features, classes: int, *, width: int, queries: int, seed: int = 0
) -> tuple[AttentiveHead, Tried, tuple[Tried, ...]]:
    """The head that cross-validation prefers, with queries of zero where that is the linear probe; what was tried.

    `tokens` (N, patches * width); `queries`: their number, a divisor of the width.
    """
    means = _means(tokens, width)
    plain, strength, _ = fit_head(means, classes, seed=seed)
    none = np.zeros((queries, width))
    rows = np.flatnonzero(tokens.labels >= 0)
    held_out = _enough(folds_to_hold_out(tokens, rows, seed))
    rest = [np.setdiff1d(rows, held) for held in held_out]
    heads = [AttentiveHead(LinearHead.fit(means, others, classes, strength), none) for others in rest]
    if not held_out:
        return AttentiveHead(plain, none), Tried(strength, np.nan, np.nan, 1.0), ()
    linear, tried = _judged(strength, tokens, held_out, heads), list[Tried]()
    with progress("fit the attentive probe", total=len(LOOSENESS) + 1, unit="strength") as bar:
        for penalty in LOOSENESS:
            heads = [fit(tokens, others, each, strength, penalty) for others, each in zip(rest, heads, strict=True)]
            tried.append(_judged(penalty, tokens, held_out, heads))
            bar.update()
            if min(one.loss for one in tried) < tried[-1].loss:
                break  # looser ones are worse still
        best = min(tried, key=lambda one: one.loss)
        if best.loss >= linear.loss:
            return AttentiveHead(plain, none), linear, tuple(tried)
        head = AttentiveHead(LinearHead.fit(means, rows, classes, strength), none)
        for penalty in LOOSENESS[: LOOSENESS.index(best.strength) + 1]:
            head = fit(tokens, rows, head, strength, penalty)
        bar.update(len(LOOSENESS) + 1 - len(tried))
    return AttentiveHead(head.linear.made_certain(best.certainty), head.queries), linear, tuple(tried)


def _means(tokens: Features, width: int) -> Features:
    """The plain mean of each image's tokens (N, D)."""
    parts = [
        np.asarray(tokens.values[part]).reshape(len(part), -1, width).mean(1)
        for part in _parts(np.arange(len(tokens.labels)))
    ]
    return Features(np.concatenate(parts), tokens.labels, tokens.groups)


def _enough(held_out: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """As many of the folds as hold out FEW images: each costs a fit for each strength."""
    before = np.cumsum([0, *map(len, held_out)])[:-1]
    return [held for held, images in zip(held_out, before, strict=True) if images < FEW]


def _judged(strength: float, tokens: Features, held_out: list[NDArray[np.int64]], heads: list[AttentiveHead]) -> Tried:
    found = [part for held, head in zip(held_out, heads, strict=True) for part in head.logits(tokens, held)]
    logits, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return judged(strength, logits, labels)


def fit(
    tokens: Features, rows: NDArray[np.int64], start: AttentiveHead, strength: float, penalty: float
) -> AttentiveHead:
    """The minimum, by L-BFGS from `start`, of mean cross entropy + strength/2 |W|^2 + penalty/2 |Q|^2 over the rows.

    It is not convex: another start may end elsewhere.
    """
    from scipy.optimize import minimize

    (Q, D), C, N = start.queries.shape, len(start.linear.bias), len(rows)

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        queries_QD, weight_DC, bias_C = _split(flat, Q, D, C)
        loss = strength / 2 * np.vdot(weight_DC, weight_DC) + penalty / 2 * np.vdot(queries_QD, queries_QD)
        gradient_QD, gradient_DC, gradient_C = penalty * queries_QD, strength * weight_DC, np.zeros(C)
        for part in _parts(rows):
            labels_B, each = tokens.labels[part], np.arange(len(part))
            v_BLD = _standardised(start.linear, tokens, part)
            pooled_BD, share_BLQ, v_BLQG = _pool(v_BLD, queries_QD)
            log_p_BC = log_softmax(pooled_BD @ weight_DC + bias_C)
            loss -= log_p_BC[each, labels_B].sum() / N
            error_BC = np.exp(log_p_BC)
            error_BC[each, labels_B] -= 1
            error_BC /= N
            gradient_DC += pooled_BD.T @ error_BC
            gradient_C += error_BC.sum(0)
            pooled_error_BQG = (error_BC @ weight_DC.T).reshape(len(part), Q, -1).astype(Single)
            share_error_BLQ = np.einsum("blqg,bqg->blq", v_BLQG, pooled_error_BQG)
            mean_B1Q = (share_BLQ * share_error_BLQ).sum(1, keepdims=True)
            score_error_BLQ = share_BLQ * (share_error_BLQ - mean_B1Q) / Single(np.sqrt(D))
            gradient_QD += score_error_BLQ.reshape(-1, Q).T @ v_BLD.reshape(-1, D)
        return float(loss), np.concatenate([gradient_QD.ravel(), gradient_DC.ravel(), gradient_C])

    first = np.concatenate([start.queries.ravel(), start.linear.weight.ravel(), start.linear.bias])
    options: dict[str, Any] = {"maxiter": _STEPS, "maxcor": 10, "gtol": 1e-4, "ftol": 1e-7}
    found = minimize(loss_and_gradient, first, jac=True, method="L-BFGS-B", options=options).x
    queries_QD, weight_DC, bias_C = _split(found, Q, D, C)
    return AttentiveHead(LinearHead(start.linear.mean, start.linear.scale, weight_DC, bias_C), queries_QD)


def _split(flat: Floats, Q: int, D: int, C: int) -> tuple[Floats, Floats, Floats]:
    return flat[: Q * D].reshape(Q, D), flat[Q * D : Q * D + D * C].reshape(D, C), flat[Q * D + D * C :]


def _standardised(linear: LinearHead, tokens: Features, part: NDArray[np.int64]) -> Singles:
    """(B, L, D)."""
    x_BLD = np.asarray(tokens.values[part]).reshape(len(part), -1, len(linear.mean))
    return (x_BLD - linear.mean.astype(Single)) * linear.scale.astype(Single)


def _pool(v_BLD: Singles, queries_QD: Floats) -> tuple[Singles, Singles, Singles]:
    """What the queries pool (B, D), the shares that they give the tokens (B, L, Q), and the parts they see of them."""
    B, L, D = v_BLD.shape
    Q = len(queries_QD)
    scores_BLQ = v_BLD @ (queries_QD.T / np.sqrt(D)).astype(Single)
    share_BLQ = np.exp(scores_BLQ - scores_BLQ.max(1, keepdims=True))
    share_BLQ /= share_BLQ.sum(1, keepdims=True)
    v_BLQG = v_BLD.reshape(B, L, Q, D // Q)
    return np.einsum("blq,blqg->bqg", share_BLQ, v_BLQG).reshape(B, D), share_BLQ, v_BLQG


def _parts(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[first : first + _PART] for first in range(0, len(rows), _PART))

"""A dictionary of the images' own patches: one layer of features, learned without labels and without a network.

After Coates and Ng (AISTATS 2011; "Learning feature representations with K-means", 2012): patches are normalised in
contrast and whitened, spherical k-means finds the words, and an image is described by how strongly each word answers in
each of 3 x 3 fields. The root of that (Arandjelovic and Zisserman 2012) is worth 2 points where labels are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from unmask.models.handmade import CONTRAST, PARTS, PATCH, WORDS, has_dictionary, shares

PATCHES_OF_AN_IMAGE = 20
_ROUNDS = 6
_WHITENED = 0.1
"""Added to the variance of each direction."""
_THRESHOLD = 1.0
"""What a word must answer to count."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Dictionary:
    filters: Floats
    """(P, words): the whitening and the words in one; P values in a patch, in the order channel, row, column."""
    threshold: Floats
    """(words,)"""

    @classmethod
    def learn(cls, images_BHWC: Floats, rng: np.random.Generator) -> Dictionary | None:
        """From patches at random places of images whose channels are in 0..1; None of images too small for fields."""
        if not has_dictionary(images_BHWC.shape[1:3]):
            return None
        patches = sliding_window_view(images_BHWC, (PATCH, PATCH), axis=(1, 2))
        count = len(images_BHWC) * PATCHES_OF_AN_IMAGE
        image = np.repeat(np.arange(len(images_BHWC)), PATCHES_OF_AN_IMAGE)
        row, column = (rng.integers(patches.shape[axis], size=count) for axis in (1, 2))
        x_NP = _normalised(patches[image, row, column].reshape(count, -1))
        mean_P = x_NP.mean(0)
        x_NP -= mean_P
        variances, directions = np.linalg.eigh((x_NP.T @ x_NP / count).astype(np.float64))
        whitening = ((directions / np.sqrt(variances + _WHITENED)) @ directions.T).astype(np.float32)
        filters = whitening @ _words(x_NP @ whitening, rng).T
        return cls(filters, mean_P @ filters + np.float32(_THRESHOLD))

    def describe(self, images_BHWC: Floats) -> Floats:
        """(B, 3, 3, words)."""
        return np.concatenate([self._one(image[None]) for image in images_BHWC])  # one by one stays in the cache

    def _one(self, images_BHWC: Floats) -> Floats:
        patches = sliding_window_view(images_BHWC, (PATCH, PATCH), axis=(1, 2))
        B, H, W = patches.shape[:3]
        answers = _normalised(patches.reshape(B * H * W, -1)) @ self.filters
        answers -= self.threshold
        np.maximum(answers, 0, out=answers)
        return np.sqrt(means(answers.reshape(B, H, W, -1), PARTS))


def means(values_BHWC: Floats, parts: int) -> Floats:
    """Over each of parts x parts fields of equal size: (B, parts, parts, C)."""
    B, H, W, C = values_BHWC.shape
    share = np.kron(shares(parts, H), shares(parts, W)).astype(np.float32)
    return (share @ values_BHWC.reshape(B, H * W, C)).reshape(B, parts, parts, C)


def _normalised(patches_NP: Floats) -> Floats:
    patches_NP = patches_NP - patches_NP.mean(1, keepdims=True)
    variance_N = np.einsum("np,np->n", patches_NP, patches_NP) / patches_NP.shape[1]
    patches_NP /= np.sqrt(variance_N + np.float32(CONTRAST))[:, None]
    return patches_NP


def _words(x_NP: Floats, rng: np.random.Generator) -> Floats:
    """(words, P) of length 1: each patch belongs to the word that it, or its negative, is nearest to."""
    words = _unit(rng.standard_normal((WORDS, x_NP.shape[1]), np.float32))
    for _ in range(_ROUNDS):
        sums = words * np.float32(1e-3)  # a word that has no patch stays
        for first in range(0, len(x_NP), 4096):
            part = x_NP[first : first + 4096]
            answers = part @ words.T
            nearest = np.abs(answers).argmax(1)
            chosen = np.zeros_like(answers)
            chosen[np.arange(len(part)), nearest] = answers[np.arange(len(part)), nearest]
            sums += chosen.T @ part
        words = _unit(sums)
    return words


def _unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

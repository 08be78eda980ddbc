"""Images with labels and images of which a teacher says what they show, as one source to train on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources.base import Source
from unmask.data.sources.subset import BothSource


class TaughtSource(BothSource):
    """Labelled images, and then others with a probability of each class in place of a label."""

    def __init__(self, labelled: Source, others: Source, probabilities: NDArray[np.float32]) -> None:
        """`probabilities`: (len(others), classes) fp32. Raises ValueError for a source without labels."""
        super().__init__(labelled, others)
        if labelled.labels is None or labelled.class_names is None:
            raise ValueError("the images to be taught beside have no labels")
        certain = np.eye(len(labelled.class_names), dtype=np.float32)[labelled.labels]
        self.class_names = labelled.class_names
        self.probabilities = np.concatenate([certain, probabilities])
        """(N, classes) fp32: what is trained on."""
        self.labels = self.probabilities.argmax(1)

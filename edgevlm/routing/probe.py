"""A probe on hidden states that asks no runtime for them.

A decoder's logits are its last hidden state times the vocabulary's matrix. As many of them as
that state has numbers, or some more, tell the state; so a linear probe on some logits is one on
hidden states, on every runtime, and for the price of looking up a thousand numbers a token.
(Probes on hidden states tell right answers from wrong ones better than probabilities do:
Kadavath et al., arXiv:2207.05221; Azaria & Mitchell, arXiv:2304.13734.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.routing.arrays import Bools, Floats
from edgevlm.routing.regression import Logistic, fit_logistic

PROBED = 1024  # logits of each step, above the width of a hidden state of small models
COMPONENTS = 16


def probed_ids(n_vocab: int) -> NDArray[np.int64]:
    """The rows of the vocabulary that are looked at: spread evenly."""
    return np.linspace(0, n_vocab - 1, PROBED).astype(np.int64)


class LogitPool:
    """The mean over an answer's steps of the probed logits, less their own mean."""

    def __init__(self) -> None:
        self._ids: NDArray[np.int64] | None = None
        self._sum = np.zeros(PROBED, np.float32)
        self.steps = 0

    def add(self, logits: NDArray[np.float32]) -> None:
        """Take in logits [n_vocab] that a token is chosen from, before it is."""
        if self._ids is None:
            self._ids = probed_ids(len(logits))
        self._sum += centred(logits[self._ids])
        self.steps += 1

    @property
    def mean(self) -> Floats:
        """[PROBED]; zeros before the first step."""
        return self._sum.astype(np.float64) / max(self.steps, 1)


def centred(probed: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probed logits [..., PROBED] less their mean, which no probability depends on."""
    centre: NDArray[np.float32] = probed - probed.mean(axis=-1, keepdims=True)
    return centre


def fit_probed(
    features: Floats, pooled: Floats, right: Bools, pictures: tuple[str, ...]
) -> Logistic:
    """A logistic regression on features [n, d] and the first COMPONENTS principal components of
    pooled logits [n, PROBED], as one on both [d + PROBED]."""
    mean = pooled.mean(axis=0)
    _, _, axes = np.linalg.svd(pooled - mean, full_matrices=False)
    axes = axes[:COMPONENTS]
    model = fit_logistic(np.hstack([features, (pooled - mean) @ axes.T]), right, pictures)
    own, of_axes = np.split(model.weights, [features.shape[1]])
    probe = of_axes @ axes
    return Logistic(np.concatenate([own, probe]), model.bias - float(mean @ probe))

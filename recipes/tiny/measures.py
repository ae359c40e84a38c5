"""Shares with 95% intervals and the AUROC of a confidence, by resampling whole pictures.

Several questions about one picture share its luck, so pictures are drawn and not questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measure:
    """A share or an AUROC of `n` answers; `low` to `high` is its 95% interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def share(parts: Sequence[float], wholes: Sequence[float], pictures: Sequence[str]) -> Measure:
    """The summed parts by the summed wholes, of one answer each."""
    drawn, rows = _resampled(pictures)
    part, whole = (np.bincount(rows, np.asarray(v, float)) for v in (parts, wholes))
    with np.errstate(invalid="ignore"):
        values = (drawn @ part) / (drawn @ whole)
        value = part.sum() / whole.sum()
    return _measure(float(value), values, int(whole.sum()))


def auroc(confidence: Sequence[float], right: Sequence[bool], pictures: Sequence[str]) -> Measure:
    """How often a right answer is surer than a wrong one; ties count half."""
    drawn, rows = _resampled(pictures)
    scores, ranks = np.unique(np.asarray(confidence, float), return_inverse=True)
    positive = np.asarray(right, bool)
    everyone = _auroc(np.ones(len(rows)), ranks, positive, len(scores))
    values = np.array([_auroc(d[rows], ranks, positive, len(scores)) for d in drawn])
    return _measure(everyone, values, len(rows))


def _auroc(weights: Floats, ranks: NDArray[np.int64], positive: NDArray[np.bool_], n: int) -> float:
    ups = np.bincount(ranks[positive], weights[positive], minlength=n)
    downs = np.bincount(ranks[~positive], weights[~positive], minlength=n)
    pairs = ups.sum() * downs.sum()
    if not pairs:
        return float("nan")
    return float(ups @ (np.cumsum(downs) - downs / 2) / pairs)


def _resampled(pictures: Sequence[str]) -> tuple[Floats, NDArray[np.int64]]:
    """How often each picture is drawn [RESAMPLES, p], and the picture of each answer [n]."""
    names, rows = np.unique(np.asarray(pictures), return_inverse=True)
    chances = np.full(len(names), 1 / len(names))
    rng = np.random.default_rng(0)
    return rng.multinomial(len(names), chances, RESAMPLES).astype(float), rows


def _measure(value: float, values: Floats, n: int) -> Measure:
    kept = values[np.isfinite(values)]
    low, high = np.quantile(kept, (0.025, 0.975)) if len(kept) else (float("nan"),) * 2
    return Measure(value, float(low), float(high), n)

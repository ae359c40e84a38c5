"""The two small models behind a confidence, in a few lines of numpy each: a logistic regression
that ranks answers, and an isotonic one that turns its score into a probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.routing.arrays import Bools, Floats

# Strengths of the ridge that cross-validation chooses from, in answers' worth of evidence.
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0)
_FOLDS = 5
_NEWTON_STEPS = 30
_LARGEST = 30.0  # a score beyond says no more
# A step of the isotonic map stands on so many answers at least.
_LEAST_IN_BLOCK = 20


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """Scores answers by `features` @ `weights` + `bias`: log-odds of being right."""

    weights: Floats
    bias: float

    def __call__(self, features: Floats) -> Floats:
        """Scores [n] of features [n, d], or one [] of [d]."""
        scores: Floats = np.clip(features @ self.weights + self.bias, -_LARGEST, _LARGEST)
        return scores

    @classmethod
    def fit(cls, features: Floats, right: Bools, ridge: float) -> Logistic:
        """Newton's method on the log-likelihood less `ridge` / 2 times the squared weights of
        standardised features; those that never change get none."""
        mean, scale = features.mean(axis=0), features.std(axis=0)
        used = scale > 1e-9
        x = np.column_stack([(features[:, used] - mean[used]) / scale[used], np.ones(len(right))])
        penalty = np.full(x.shape[1], ridge)
        penalty[-1] = 1e-9
        beta = np.zeros(x.shape[1])
        for _ in range(_NEWTON_STEPS):
            p = 1 / (1 + np.exp(-np.clip(x @ beta, -_LARGEST, _LARGEST)))
            gradient = x.T @ (right - p) - penalty * beta
            hessian = (x.T * (p * (1 - p))) @ x + np.diag(penalty)
            step = np.linalg.solve(hessian, gradient)
            beta += step
            if np.abs(step).max() < 1e-8:
                break
        weights = np.zeros(features.shape[1])
        weights[used] = beta[:-1] / scale[used]
        return cls(weights, float(beta[-1] - weights @ mean))

    def to_dict(self) -> dict[str, Any]:
        return {"weights": [float(f"{w:.6g}") for w in self.weights], "bias": round(self.bias, 6)}

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Logistic:
        return cls(_finite(values["weights"]), float(_finite([values["bias"]])[0]))


def fit_logistic(features: Floats, right: Bools, pictures: Sequence[str]) -> Logistic:
    """A logistic regression with the ridge that predicts other pictures' answers best."""
    _, ids = np.unique(np.asarray(pictures), return_inverse=True)
    folds = np.random.default_rng(0).permutation(ids.max() + 1)[ids] % _FOLDS

    def loss(ridge: float) -> float:
        total = 0.0
        for fold in range(_FOLDS):
            held = folds == fold
            model = Logistic.fit(features[~held], right[~held], ridge)
            signed = np.where(right[held], 1.0, -1.0) * model(features[held])
            total += float(np.logaddexp(0.0, -signed).sum())
        return total

    return Logistic.fit(features, right, min(RIDGES, key=loss))


@dataclass(frozen=True, slots=True, eq=False)
class Isotonic:
    """A map from scores to probabilities that never falls, straight between its `knots`.

    Isotonic calibration: Zadrozny & Elkan, KDD 2002. Blocks of one value are joined by their
    centres (Oron & Flournoy, arXiv:1701.05964), so that an order among scores stays one.
    """

    knots: Floats
    values: Floats

    def __call__(self, scores: Floats) -> Floats:
        values: Floats = np.interp(scores, self.knots, self.values)
        return values

    @classmethod
    def fit(cls, scores: Floats, right: Bools) -> Isotonic:
        """Pool adjacent violators (Ayer et al., Ann. Math. Statist. 1955). No block claims to be
        certain: half an answer of either kind is added to each."""
        levels, starts, counts = _levels(scores)
        sums = np.add.reduceat(right[np.argsort(scores, kind="stable")].astype(float), starts)
        blocks: list[tuple[float, float, float]] = []  # answers, right ones, sum of scores
        for level, count, rights in zip(levels, counts, sums, strict=True):
            blocks.append((float(count), float(rights), float(level * count)))
            while len(blocks) > 1 and _must_join(*blocks[-2:]):
                blocks[-2:] = [_joined(*blocks[-2:])]
        if len(blocks) > 1 and blocks[-1][0] < _LEAST_IN_BLOCK:
            blocks[-2:] = [_joined(*blocks[-2:])]
        n, rights_of, scores_of = np.array(blocks).T
        values = np.maximum.accumulate((rights_of + 0.5) / (n + 1.0))
        return cls(scores_of / n, values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "knots": [float(f"{x:.6g}") for x in self.knots],
            "values": [round(float(y), 6) for y in self.values],
        }

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Isotonic:
        """Raises ValueError where it would fall or is empty."""
        knots, heights = _finite(values["knots"]), _finite(values["values"])
        if not len(knots) == len(heights) > 0:
            raise ValueError("a map needs as many values as knots")
        if (np.diff(knots) < 0).any() or (np.diff(heights) < 0).any():
            raise ValueError("a map falls")
        if heights[0] < 0 or heights[-1] > 1:
            raise ValueError("a probability is none")
        return cls(knots, heights)


def _levels(scores: Floats) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    levels, starts, counts = np.unique(np.sort(scores), return_index=True, return_counts=True)
    return levels, starts, counts


_Block = tuple[float, float, float]


def _must_join(a: _Block, b: _Block) -> bool:
    return a[0] < _LEAST_IN_BLOCK or a[1] / a[0] >= b[1] / b[0]


def _joined(a: _Block, b: _Block) -> _Block:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _finite(values: Any) -> Floats:
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("a number is missing or not finite")
    return array

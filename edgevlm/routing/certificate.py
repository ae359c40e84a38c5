"""A threshold with a guarantee: above it, answers err at most so often, with so much certainty.

Thresholds are tested one after the other, from a strict one down to looser ones, each with the
exact binomial test behind Clopper and Pearson's interval (Biometrika 1934): may so few errors
come of a risk above the limit? The first that fails ends it, and the last that passed is
certified. As the order is fixed before the data is looked at, no correction is paid for testing
many (fixed-sequence testing, Learn then Test: Angelopoulos et al., arXiv:2110.01052; the same
question with a union bound: Geifman & El-Yaniv, arXiv:1705.08500). The guarantee is for answers
like those it was made from, and says nothing about others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgevlm.routing.arrays import Bools, Floats

DELTA = 0.05
# Shares of the answers that a first threshold, and each after it, would give.
_SHARES = np.linspace(0.05, 1.0, 39)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Of answers with a score of at least `threshold`, no more than `risk` are wrong, but for a
    chance of `delta` that the data misled.

    `answered` of `examples` were above the threshold, `wrong` of these wrong; `bound` is the
    upper Clopper-Pearson bound of their risk, and `effective` what `answered` counts for (see
    `effective_size`).
    """

    risk: float
    delta: float
    threshold: float
    bound: float
    examples: int
    answered: int
    wrong: int
    effective: float

    @property
    def coverage(self) -> float:
        return self.answered / self.examples

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """What `to_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            risk=float(values["risk"]),
            delta=float(values["delta"]),
            threshold=float(values["threshold"]),
            bound=float(values["bound"]),
            examples=int(values["examples"]),
            answered=int(values["answered"]),
            wrong=int(values["wrong"]),
            effective=float(values["effective"]),
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no threshold could be certified. `missing` more examples like these should do; None
    where even the surest answers seem to err more often than `risk`, so that none would."""

    risk: float
    delta: float
    examples: int
    missing: int | None

    @property
    def reason(self) -> str:
        wanted = f"errors of at most {self.risk:.1%} with {1 - self.delta:.0%} certainty"
        if self.missing is None:
            return f"{wanted} can't be had: the surest of {self.examples} answers err more often."
        return (
            f"{wanted} can't be shown with {self.examples} answers:"
            f" about {self.missing} more are missing."
        )


def certify(
    scores: Floats,
    right: Bools,
    pictures: Sequence[str],
    thresholds: Sequence[float],
    *,
    risk: float,
    delta: float = DELTA,
) -> Certificate | Refusal:
    """Test `thresholds` in their order on `scores` [n], `right` [n] of answers that had no part
    in making the scores or choosing the thresholds."""
    passed: _Above | None = None
    for threshold in thresholds:
        above = _Above.of(scores, right, pictures, float(threshold))
        if above.chance(risk) > delta:
            break
        passed = above
    if passed is None:
        return _refusal(scores, right, pictures, thresholds, risk, delta)
    return Certificate(
        risk,
        delta,
        passed.threshold,
        upper_bound(passed.errors, passed.effective, delta),
        len(scores),
        passed.answered,
        passed.wrong,
        passed.effective,
    )


@dataclass(frozen=True, slots=True)
class _Above:
    """What is known of the answers with a score of at least `threshold`."""

    threshold: float
    answered: int
    wrong: int
    effective: float

    @classmethod
    def of(cls, scores: Floats, right: Bools, pictures: Sequence[str], threshold: float) -> _Above:
        rows = np.flatnonzero(scores >= threshold)
        effective = effective_size([pictures[i] for i in rows])
        return cls(threshold, len(rows), int((~right[rows]).sum()), effective)

    @property
    def errors(self) -> float:
        """Those of `effective` answers."""
        return self.wrong * self.effective / max(self.answered, 1)

    def chance(self, risk: float) -> float:
        """That of so few errors, were the risk `risk`."""
        return binomial_tail(self.errors, self.effective, risk)


def order_thresholds(scores: Floats, right: Bools, *, risk: float, share: float = 1.0) -> Floats:
    """Thresholds to test, chosen on answers that are not those of the test.

    It begins where a test of `share` times as many answers would pass most easily, and goes down
    from there: the strictest threshold leaves too few answers to show anything with.
    """
    levels = np.unique(np.quantile(scores, 1.0 - _SHARES))[::-1]
    ease = [_ease(right[scores >= level], risk, share) for level in levels]
    thresholds: Floats = levels[int(np.argmin(ease)) :]
    return thresholds


def effective_size(pictures: Sequence[str]) -> float:
    """How many independent answers these count for, were all questions about one picture to
    share its luck entirely: Kish's (sum m)^2 / sum m^2 over the m answers of each picture."""
    _, counts = np.unique(np.asarray(pictures), return_counts=True)
    return float(counts.sum() ** 2 / (counts**2).sum()) if len(counts) else 0.0


def upper_bound(wrong: float, answers: float, delta: float = DELTA) -> float:
    """The Clopper-Pearson upper bound of a risk: the largest that would show so few wrong
    answers with a chance of `delta` or more. Counts need not be whole."""
    if answers <= 0 or wrong >= answers:
        return 1.0
    low, high = wrong / answers, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if binomial_tail(wrong, answers, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def binomial_tail(wrong: float, answers: float, risk: float) -> float:
    """The chance of at most `wrong` errors in so many answers, each wrong with chance `risk`:
    the regularised incomplete beta function I(1 - risk; answers - wrong, wrong + 1)."""
    if wrong >= answers:
        return 1.0
    return _incomplete_beta(answers - wrong, wrong + 1.0, 1.0 - risk)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), by the continued fraction of DLMF 8.17.22 (Lentz's method)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    fraction = c = 1.0
    d = 0.0
    for i in range(10_000):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / _away_from_zero(1.0 + term * d)
        c = _away_from_zero(1.0 + term / c)
        fraction *= c * d
        if abs(c * d - 1.0) < 1e-12:
            break
    return min(front * (fraction - 1.0) / a, 1.0)


def _away_from_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300


def _ease(right: Bools, risk: float, share: float) -> float:
    """The p-value that a test with `share` times these answers would have, with errors counted
    at a standard deviation more: the best of many thresholds was lucky, too."""
    if not len(right):
        return 1.0
    wrong = float((~right).sum())
    errors = min(wrong + wrong**0.5 + 0.5, len(right))
    return binomial_tail(errors * share, len(right) * share, risk)


def _refusal(
    scores: Floats,
    right: Bools,
    pictures: Sequence[str],
    thresholds: Sequence[float],
    risk: float,
    delta: float,
) -> Refusal:
    tried = [_Above.of(scores, right, pictures, float(threshold)) for threshold in thresholds]
    needed = [n for above in tried if (n := _needed(above, risk, delta)) is not None]
    # The share above a threshold stays, and more examples bring more above it.
    counts = [n / above.effective for n, above in needed]
    missing = max(math.ceil((min(counts) - 1) * len(scores)), 1) if counts else None
    return Refusal(risk, delta, len(scores), missing)


def _needed(above: _Above, risk: float, delta: float) -> tuple[float, _Above] | None:
    """How many independent answers above the threshold would show it, if they went on to err as
    they do; half an error more is counted, as none in a few is no proof of none."""
    rate = (above.wrong + 0.5) / (above.answered + 1)
    if not above.answered or rate >= risk:
        return None
    needed = 1.0
    while binomial_tail(rate * needed, needed, risk) > delta:
        needed *= 1.05
    return needed, above

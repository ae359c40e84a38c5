"""How good a confidence is: ranking, risk against coverage, calibration, cost against quality.

All functions take `scores` float [n], the larger the surer, and `right` bool [n]. Equal scores
are never told apart: whatever they decide, they decide for all of them or on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm.routing.arrays import Bools, Floats, Rows

BINS = 15


def auroc(scores: Floats, right: Bools) -> float:
    """How often a right answer is surer than a wrong one; ties count half."""
    _, ranks = np.unique(scores, return_inverse=True)
    ups, downs = (np.bincount(ranks, mask, minlength=ranks.max() + 1) for mask in (right, ~right))
    pairs = ups.sum() * downs.sum()
    return float(ups @ (np.cumsum(downs) - downs / 2) / pairs) if pairs else float("nan")


def risk_coverage(scores: Floats, right: Bools) -> tuple[Floats, Floats]:
    """Coverage and risk [k] where only answers of at least a score are given, surest first: the
    share that is answered, and the share of these that is wrong."""
    levels, ranks = np.unique(-scores, return_inverse=True)
    answered = np.cumsum(np.bincount(ranks, minlength=len(levels)))
    wrong = np.cumsum(np.bincount(ranks, ~right, minlength=len(levels)))
    return answered / len(scores), wrong / answered


def aurc(scores: Floats, right: Bools) -> float:
    """The mean risk over all n coverages (El-Yaniv & Wiener, JMLR 2010; Geifman & El-Yaniv,
    arXiv:1705.08500), equal scores taken in the order of chance."""
    order = np.argsort(-scores, kind="stable")
    _, starts, counts = np.unique(-scores[order], return_index=True, return_counts=True)
    means = np.add.reduceat((~right[order]).astype(float), starts) / counts
    wrong = np.cumsum(np.repeat(means, counts))
    return float((wrong / np.arange(1, len(scores) + 1)).mean())


def excess_aurc(scores: Floats, right: Bools) -> float:
    """`aurc` above that of a ranking with every right answer before every wrong one (E-AURC,
    Geifman, Uziel & El-Yaniv, arXiv:1805.08206)."""
    return aurc(scores, right) - aurc(right.astype(float), right)


def coverage_at(risk: float, scores: Floats, right: Bools) -> float:
    """The largest share that can be answered with at most this risk."""
    coverage, risks = risk_coverage(scores, right)
    return float(coverage[risks <= risk].max(initial=0.0))


def reliability(
    confidence: Floats, right: Bools, bins: int = BINS
) -> tuple[Floats, Floats, Floats]:
    """Mean confidence, share of right answers and share of all answers [k] in bins of equal
    mass; equal confidences fall into one bin, so there may be fewer than `bins`."""
    _, ranks, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    middles = (np.cumsum(counts) - counts / 2) / len(confidence)
    chosen = np.minimum((middles * bins).astype(int), bins - 1)[ranks]
    mass = np.bincount(chosen, minlength=bins)
    used = mass > 0
    told = np.bincount(chosen, confidence, minlength=bins)[used] / mass[used]
    found = np.bincount(chosen, right, minlength=bins)[used] / mass[used]
    return told, found, mass[used] / len(confidence)


def calibration_error(confidence: Floats, right: Bools, bins: int = BINS) -> float:
    """By how much confidence and the share of right answers differ in a bin, on average (ECE with
    bins of equal mass: Nixon et al., arXiv:1904.01685)."""
    told, found, mass = reliability(confidence, right, bins)
    return float(np.abs(told - found) @ mass)


def chance_error(confidence: Floats, bins: int = BINS, *, seed: int = 0, draws: int = 200) -> float:
    """The calibration error that a perfect confidence of these values shows by chance alone,
    on average: what a figure from so few answers can't fall below."""
    rng = np.random.default_rng(seed)
    drawn = rng.random((draws, len(confidence))) < confidence
    return float(np.mean([calibration_error(confidence, right, bins) for right in drawn]))


@dataclass(frozen=True, slots=True)
class CostQuality:
    """What is gained by sending the least sure answers to a stronger model.

    `sent` and `quality` [n + 1]: the share that is sent, and the share of right answers then.
    `recovered` is the performance gap recovered, 0 for the weak model and 1 for the strong, as in
    RouteLLM (Ong et al., arXiv:2406.18665); it may pass 1 where the two err on different answers.
    """

    sent: Floats
    quality: Floats
    recovered: Floats

    @property
    def apgr(self) -> float:
        """The mean of the gap recovered over all shares that are sent."""
        return float((self.recovered[1:] + self.recovered[:-1]) @ np.diff(self.sent) / 2)

    def recovered_at(self, sent: float) -> float:
        return float(np.interp(sent, self.sent, self.recovered))

    def cpt(self, recovered: float) -> float:
        """The least share to send that recovers as much of the gap (call-performance threshold);
        NaN where none does."""
        enough = self.sent[self.recovered >= recovered]
        return float(enough[0]) if len(enough) else float("nan")


def cost_quality(scores: Floats, weak: Bools, strong: Bools) -> CostQuality:
    """`weak` and `strong` say which answers each model has right; equal scores are sent in the
    order of chance."""
    order = np.argsort(scores, kind="stable")
    gain = strong[order].astype(float) - weak[order]
    _, starts, counts = np.unique(scores[order], return_index=True, return_counts=True)
    means = np.add.reduceat(gain, starts) / counts
    gained = np.concatenate([[0.0], np.cumsum(np.repeat(means, counts))]) / len(scores)
    gap = float(strong.mean() - weak.mean())
    sent = np.linspace(0.0, 1.0, len(scores) + 1)
    recovered = gained / gap if gap else np.full_like(gained, np.nan)
    return CostQuality(sent, weak.mean() + gained, recovered)


def best_order(weak: Bools, strong: Bools) -> Floats:
    """The scores of a router that knows both answers: sent first is what gains most."""
    return weak.astype(float) - strong


Statistic = Callable[[Rows], float]


def interval(
    statistic: Statistic, pictures: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95% bootstrap interval of `statistic`, a function of rows, by drawing whole pictures:
    the questions about one share its luck."""
    names, ids = np.unique(np.asarray(pictures), return_inverse=True)
    order = np.argsort(ids, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(ids))[:-1])
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = rng.integers(len(names), size=len(names))
        values.append(statistic(np.concatenate([rows_of[i] for i in drawn])))
    finite = np.array(values)[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, (0.025, 0.975))
    return float(low), float(high)

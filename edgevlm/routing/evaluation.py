"""The figures of a confidence on judged answers, beside those of what others route by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.routing.answers import Table
from edgevlm.routing.arrays import Bools, Floats
from edgevlm.routing.calibration import Calibration
from edgevlm.routing.curves import (
    CostQuality,
    aurc,
    auroc,
    best_order,
    calibration_error,
    chance_error,
    cost_quality,
    coverage_at,
    excess_aurc,
    interval,
    reliability,
    risk_coverage,
)

CONFIDENCE, PROBED = "confidence", "with the probe"
SENT = 0.25  # of the answers to the stronger model
RISK = 0.05
# A task of fewer answers, or of fewer right or wrong ones, tells nothing of calibration.
LEAST_OF_A_TASK = 60


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """What answers are ranked by: `scores` [n], and what they mean where they are calibrated."""

    name: str
    scores: Floats
    confidence: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """`methods`: the confidence first, then baselines, a random order, and the oracle, which
    knows what is right. `strong` is who answers what is sent; all right where nobody was asked."""

    table: Table
    methods: tuple[Method, ...]
    strong: Bools
    figures: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def cost_quality(self, method: Method) -> CostQuality:
        return cost_quality(method.scores, self.table.right, self.strong)

    def to_dict(self) -> dict[str, Any]:
        """Figures and curves as JSON."""
        right = self.table.right
        curves: dict[str, dict[str, Any]] = {}
        for method in self.methods:
            coverage, risk = risk_coverage(method.scores, right)
            cost = self.cost_quality(method)
            curves[method.name] = {
                "coverage": _thin(coverage),
                "risk": _thin(risk),
                "sent": _thin(cost.sent),
                "quality": _thin(cost.quality),
            }
            if method.confidence is not None:
                told, found, mass = reliability(method.confidence, right)
                curves[method.name]["reliability"] = {
                    "confidence": _thin(told),
                    "right": _thin(found),
                    "mass": _thin(mass),
                }
        return {
            "answers": len(right),
            "pictures": len(set(self.table.pictures)),
            "right": float(right.mean()),
            "strong_right": float(self.strong.mean()),
            "methods": {name: dict(figures) for name, figures in self.figures.items()},
            "tasks": {name: dict(tasks) for name, tasks in self.tasks.items()},
            "curves": curves,
        }


def evaluate(calibration: Calibration, table: Table, *, draws: int = 300) -> Evaluation:
    """Judge `table`, of which the calibration has seen no picture. `draws` are of the bootstrap
    behind each 95% interval."""
    scores = calibration.whole.score(table.features)
    methods = [Method(CONFIDENCE, scores, calibration.whole.probability(scores))]
    if calibration.probed is not None and table.pooled is not None:
        scores = calibration.probed.score(np.hstack([table.features, table.pooled]))
        methods.append(Method(PROBED, scores, calibration.probed.probability(scores)))
    methods += [
        Method(name, values, calibration.baselines[name](values))
        for name, values in table.baselines.items()
        if name in calibration.baselines
    ]
    chance = np.random.default_rng(0).random(len(table))
    strong = np.ones(len(table), bool) if table.strong is None else table.strong
    methods += [Method("random", chance), Method("oracle", best_order(table.right, strong))]
    return Evaluation(
        table,
        tuple(methods),
        strong,
        {method.name: _figures(method, table, strong, draws) for method in methods},
        {m.name: _by_task(m, table) for m in methods if m.name in (CONFIDENCE, PROBED)},
    )


def _figures(method: Method, table: Table, strong: Bools, draws: int) -> dict[str, Any]:
    scores, right = method.scores, table.right

    def gain(sent: CostQuality, best: CostQuality) -> float:
        return (sent.apgr - 0.5) / (best.apgr - 0.5)

    def of_rows(figure: Callable[[Floats, Bools, Bools], float]) -> list[float]:
        value = figure(scores, right, strong)
        low, high = interval(
            lambda rows: figure(scores[rows], right[rows], strong[rows]),
            table.pictures,
            draws=draws,
        )
        return [value, low, high]

    figures: dict[str, Any] = {
        "auroc": of_rows(lambda s, r, _: auroc(s, r)),
        "aurc": [aurc(scores, right)],
        "excess_aurc": of_rows(lambda s, r, _: excess_aurc(s, r)),
        "coverage_at_5%": of_rows(lambda s, r, _: coverage_at(RISK, s, r)),
    }
    if strong.mean() > right.mean():
        figures["apgr"] = [cost_quality(scores, right, strong).apgr]
        figures["apgr_ratio"] = of_rows(
            lambda s, r, t: gain(cost_quality(s, r, t), cost_quality(best_order(r, t), r, t))
        )
        figures["recovered_at_25%"] = of_rows(
            lambda s, r, t: cost_quality(s, r, t).recovered_at(SENT)
        )
        figures["cpt_50%"] = [cost_quality(scores, right, strong).cpt(0.5)]
    if method.confidence is not None:
        told = method.confidence
        low, high = interval(
            lambda rows: calibration_error(told[rows], right[rows]), table.pictures, draws=draws
        )
        figures["calibration_error"] = [calibration_error(told, right), low, high]
        figures["chance_error"] = [chance_error(told)]
    return figures


def _by_task(method: Method, table: Table) -> dict[str, dict[str, Any]]:
    """AUROC and calibration of each task that has enough answers."""
    assert method.confidence is not None
    tasks = np.asarray(table.tasks)
    found = {}
    for task in sorted(set(table.tasks)):
        rows = tasks == task
        right, told = table.right[rows], method.confidence[rows]
        told_of: dict[str, Any] = {"answers": int(rows.sum()), "right": float(right.mean())}
        if rows.sum() >= LEAST_OF_A_TASK:
            told_of["calibration_error"] = calibration_error(told, right)
            told_of["chance_error"] = chance_error(told)
            told_of["bias"] = float(told.mean() - right.mean())
            told_of["auroc"] = auroc(method.scores[rows], right)
        found[task] = told_of
    return found


def _thin(values: Floats, most: int = 200) -> list[float]:
    """At most so many of the values, the ends among them."""
    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).astype(int))
    return [round(float(value), 5) for value in values[kept]]

from __future__ import annotations

import numpy as np
import pytest

from edgevlm.routing.curves import (
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

RNG = np.random.default_rng(0)
SCORES = RNG.integers(0, 12, 300) / 12  # with many ties
RIGHT = RNG.random(300) < 0.3 + 0.6 * SCORES


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    ups, downs = SCORES[RIGHT][:, None], SCORES[~RIGHT][None]
    assert auroc(SCORES, RIGHT) == pytest.approx(((ups > downs) + (ups == downs) / 2).mean())
    assert np.isnan(auroc(SCORES, np.ones(300, bool)))


def test_ties_cost_what_breaking_them_at_random_costs() -> None:
    broken = [aurc(SCORES + RNG.random(300) * 1e-6, RIGHT) for _ in range(200)]
    assert aurc(SCORES, RIGHT) == pytest.approx(np.mean(broken), abs=2e-3)


def test_only_a_perfect_ranking_has_no_excess() -> None:
    assert excess_aurc(RIGHT.astype(float), RIGHT) == 0.0
    assert excess_aurc(SCORES, RIGHT) > 0.02
    assert excess_aurc(-SCORES, RIGHT) > excess_aurc(SCORES, RIGHT)


def test_coverage_counts_whole_levels_of_equal_scores() -> None:
    scores, right = np.array([3.0, 2, 2, 1]), np.array([True, True, False, True])
    coverage, risk = risk_coverage(scores, right)
    assert coverage.tolist() == [0.25, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0.0, 1 / 3, 1 / 4])
    assert coverage_at(0.25, scores, right) == 1.0
    assert coverage_at(0.1, scores, right) == 0.25
    assert coverage_at(0.0, -scores, ~right) == 0.0


def test_calibration_error_is_what_confidence_is_off_by() -> None:
    told = np.repeat([0.2, 0.9], 500)
    right = np.concatenate([np.arange(500) < 100, np.arange(500) < 350])
    assert calibration_error(told, right) == pytest.approx(0.5 * 0.2)
    means, found, mass = reliability(told, right)
    assert means.tolist() == pytest.approx([0.2, 0.9])
    assert found.tolist() == pytest.approx([0.2, 0.7])
    assert mass.tolist() == [0.5, 0.5]


def test_chance_alone_shows_an_error() -> None:
    told = RNG.uniform(0.5, 1.0, 2000)
    expected = chance_error(told)
    assert 0.005 < expected < 0.05
    assert chance_error(told[:200]) > 2 * expected


def test_sending_recovers_the_gap_between_two_models() -> None:
    weak, strong = RIGHT, np.ones(300, bool)
    curve = cost_quality(SCORES, weak, strong)
    assert (curve.recovered[0], curve.recovered[-1]) == (0.0, pytest.approx(1.0))
    assert curve.quality[-1] == pytest.approx(1.0)
    wrong = (~weak).mean()
    best = cost_quality(best_order(weak, strong), weak, strong)
    assert best.apgr == pytest.approx(1 - wrong / 2)
    # With a strong model that is always right, the share of what can be gained is the Gini.
    assert (curve.apgr - 0.5) / (best.apgr - 0.5) == pytest.approx(2 * auroc(SCORES, weak) - 1)
    assert best.cpt(0.5) == pytest.approx(wrong / 2, abs=2 / 300)
    assert best.recovered_at(0.25) > curve.recovered_at(0.25) > 0.25


def test_where_the_models_are_as_good_there_is_nothing_to_recover() -> None:
    assert np.isnan(cost_quality(SCORES, RIGHT, RIGHT).apgr)


def test_an_interval_widens_where_pictures_have_many_questions() -> None:
    values = np.repeat(RNG.normal(size=50), 20)
    one_each = interval(lambda rows: float(values[rows].mean()), [str(i) for i in range(1000)])
    shared = interval(lambda rows: float(values[rows].mean()), [str(i // 20) for i in range(1000)])
    assert shared[1] - shared[0] > 3 * (one_each[1] - one_each[0])
    assert shared[0] < values.mean() < shared[1]

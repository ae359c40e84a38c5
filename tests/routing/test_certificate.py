from __future__ import annotations

import math

import numpy as np
import pytest

from edgevlm.routing.certificate import (
    Certificate,
    Refusal,
    binomial_tail,
    certify,
    effective_size,
    order_thresholds,
    upper_bound,
)

RISK = 0.05
TRIALS = 100


@pytest.mark.parametrize(
    ("wrong", "answers", "risk"), [(0, 59, 0.05), (3, 100, 0.05), (40, 60, 0.7)]
)
def test_the_tail_is_the_sum_of_its_terms(wrong: int, answers: int, risk: float) -> None:
    terms = (
        math.comb(answers, i) * risk**i * (1 - risk) ** (answers - i) for i in range(wrong + 1)
    )
    assert binomial_tail(wrong, answers, risk) == pytest.approx(sum(terms), rel=1e-9)


def test_bounds_are_those_of_the_tables() -> None:
    # No error in n answers bounds the risk by 1 - delta^(1/n).
    assert upper_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_bound(3, 100) == pytest.approx(0.0757, abs=5e-5)
    assert upper_bound(5, 5) == upper_bound(0, 0) == 1.0
    assert upper_bound(1, 2000) < upper_bound(2, 2000) < upper_bound(2, 1000)


def world(rng: np.random.Generator, count: int, per_picture: int = 1) -> tuple:
    """Scores, verdicts and pictures; an answer of score s is wrong with probability (1 - s)^4,
    and those about one picture are right or wrong together."""
    pictures = np.repeat(np.arange(-(-count // per_picture)), per_picture)[:count]
    score = rng.random(pictures[-1] + 1)
    right = (rng.random(len(score)) >= (1 - score) ** 4)[pictures]
    return score[pictures], right, pictures.astype(str).tolist()


def risk_above(threshold: float) -> float:
    """The true risk of answers with a score of at least `threshold`."""
    return (1 - threshold) ** 4 / 5


@pytest.mark.parametrize("per_picture", [1, 5])
def test_certificates_hold_as_often_as_they_say(per_picture: int) -> None:
    rng = np.random.default_rng(7)
    violated, coverages = 0, []
    for _ in range(TRIALS):
        scores, right, _ = world(rng, 400)
        thresholds = order_thresholds(scores, right, risk=RISK, share=2)
        outcome = certify(*world(rng, 800, per_picture), thresholds, risk=RISK)
        if isinstance(outcome, Certificate):
            violated += risk_above(outcome.threshold) > RISK
            coverages.append(outcome.coverage)
    # At most 5% in the long run; chance may add what so few trials add in one case of a hundred.
    assert violated <= TRIALS * 0.05 + 2.33 * math.sqrt(TRIALS * 0.05 * 0.95)
    if per_picture == 1:
        # The best threshold answers 71%; the guarantee costs some of that.
        assert len(coverages) > 0.9 * TRIALS
        assert 0.5 < np.mean(coverages) < 0.7


def test_a_refusal_says_how_many_examples_are_missing() -> None:
    rng = np.random.default_rng(0)
    scores, right, pictures = world(rng, 60)
    thresholds = order_thresholds(*world(rng, 400)[:2], risk=RISK)
    outcome = certify(scores, right, pictures, thresholds, risk=RISK)
    assert isinstance(outcome, Refusal)
    assert outcome.missing is not None
    assert f"{outcome.missing} more" in outcome.reason
    enough = world(rng, 2 * (60 + outcome.missing))
    assert isinstance(certify(*enough, thresholds, risk=RISK), Certificate)


def test_what_no_number_of_examples_can_show_is_said_so() -> None:
    right = np.arange(300) % 3 > 0
    outcome = certify(np.zeros(300), right, [str(i) for i in range(300)], [0.0], risk=RISK)
    assert isinstance(outcome, Refusal)
    assert outcome.missing is None
    assert "can't be had" in outcome.reason


def test_the_first_failure_ends_the_test() -> None:
    scores = np.arange(1000.0)
    right = scores >= 500
    pictures = [str(i) for i in range(1000)]
    outcome = certify(scores, right, pictures, [600.0, 500.0, 100.0, 550.0], risk=RISK)
    assert isinstance(outcome, Certificate)
    assert (outcome.threshold, outcome.answered, outcome.wrong) == (500.0, 500, 0)
    assert Certificate.of_dict(outcome.to_dict()) == outcome


def test_questions_about_one_picture_count_for_fewer() -> None:
    assert effective_size(["a", "b", "c"]) == 3
    assert effective_size(["a", "a", "b", "b"]) == 2
    assert effective_size(["a"] * 9 + ["b"]) == pytest.approx(100 / 82)
    assert effective_size([]) == 0

from __future__ import annotations

import numpy as np
import pytest
from judged import STATS, token

from edgevlm.messages import Token, TopToken
from edgevlm.routing.features import NAMES, Asked, baselines_of, features_of

ASKED = Asked("How many cats are there?", STATS, 150, 102)


def of(tokens: list[Token], asked: Asked = ASKED) -> dict[str, float]:
    return dict(zip(NAMES, features_of(tokens, asked), strict=True))


def test_logprobs_margins_and_entropies_are_those_of_the_tokens() -> None:
    tokens = [token(np.log(0.5), "There are"), token(np.log(0.8), " two"), token(np.log(0.9), "")]
    found = of(tokens)
    assert found["logprob mean"] == pytest.approx(np.log([0.5, 0.8, 0.9]).mean())
    assert found["logprob min"] == found["logprob first"] == pytest.approx(np.log(0.5))
    assert found["logprob 10%"] == pytest.approx(np.quantile(np.log([0.5, 0.8, 0.9]), 0.1))
    assert found["logprob 25%"] == pytest.approx(np.quantile(np.log([0.5, 0.8, 0.9]), 0.25))
    assert found["margin first"] == pytest.approx(0.0, abs=1e-9)
    assert found["margin mean"] == pytest.approx((0 + np.log(4) + np.log(9)) / 3)
    assert found["entropy first"] == pytest.approx(np.log(2))


def test_the_question_the_answer_and_the_picture_are_told() -> None:
    found = of([token(-0.1, "There are"), token(-0.2, " two."), token(-0.1, "")])
    assert found["asked: count"] == found["answered: number"] == found["picture"] == 1.0
    assert found["asked: colour"] == found["answered: yes"] == 0.0
    assert found["short side"] == pytest.approx(np.log2(480))
    assert found["image share"] == pytest.approx(102 / 150)


def test_candidates_that_somebody_asked_for_change_nothing() -> None:
    alone = [Token(7, "yes", float(np.log(0.8)))]
    assert of(alone) == of([token(float(np.log(0.8)))])
    assert of(alone)["margin mean"] == pytest.approx(np.log(4))
    assert of(alone)["entropy mean"] == pytest.approx(-0.8 * np.log(0.8) - 0.2 * np.log(0.2))


def test_baselines_are_of_the_candidates() -> None:
    tops = tuple(TopToken(i, "a", float(np.log(p))) for i, p in enumerate((0.6, 0.2, 0.1)))
    found = baselines_of([Token(0, "a", tops[0].logprob, tops)], "What?")
    masses = np.array([0.6, 0.2, 0.1, 0.1])
    assert found["margin"] == pytest.approx(np.log(3))
    assert found["entropy"] == pytest.approx((masses * np.log(masses)).sum())
    assert found["question length"] == -5.0


def test_what_is_missing_or_extreme_stays_finite() -> None:
    assert np.isfinite(features_of([], Asked(""))).all()
    sure = [Token(1, "a", 0.0), Token(2, "b", float("-inf")), Token(3, "c", -1e6)]
    assert np.isfinite(features_of(sure * 200, Asked("?" * 10_000))).all()


def test_the_surer_answer_has_the_larger_baselines() -> None:
    sure, unsure = [token(-0.01), token(-0.02)], [token(-0.6), token(-0.5)]
    for name, value in baselines_of(sure, "What?").items():
        other = baselines_of(unsure, "What?")[name]
        assert value == other if name == "question length" else value > other

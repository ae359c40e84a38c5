from __future__ import annotations

import numpy as np
import pytest

from edgevlm.routing.curves import auroc, calibration_error
from edgevlm.routing.regression import Isotonic, Logistic, fit_logistic

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(1500, 4)) * [1.0, 5.0, 0.1, 0.0] + [0.0, 100.0, 0.0, 3.0]
TRUE = 0.8 * FEATURES[:, 0] - 0.2 * (FEATURES[:, 1] - 100)
RIGHT = RNG.random(1500) < 1 / (1 + np.exp(-TRUE))
PICTURES = [str(i // 3) for i in range(1500)]


def test_the_fit_is_where_the_penalised_likelihood_is_flat() -> None:
    model = Logistic.fit(FEATURES, RIGHT, ridge=3.0)
    mean, scale = FEATURES.mean(axis=0)[:3], FEATURES.std(axis=0)[:3]
    standard = (FEATURES[:, :3] - mean) / scale
    p = 1 / (1 + np.exp(-model(FEATURES)))
    gradient = standard.T @ (RIGHT - p) - 3.0 * model.weights[:3] * scale
    assert gradient == pytest.approx(0.0, abs=1e-6)
    assert (RIGHT - p).sum() == pytest.approx(0.0, abs=1e-6)
    assert model.weights[3] == 0.0  # what never changes tells nothing


def test_cross_validation_finds_what_generalises() -> None:
    model = fit_logistic(FEATURES, RIGHT, PICTURES)
    assert model.weights[0] == pytest.approx(0.8, abs=0.2)
    assert model.weights[1] == pytest.approx(-0.2, abs=0.05)
    again = Logistic.of_dict(model.to_dict())
    assert again(FEATURES) == pytest.approx(model(FEATURES), abs=1e-3)
    noise = RNG.normal(size=(200, 60))
    right = RNG.random(200) < 0.5
    fitted = fit_logistic(noise, right, [str(i) for i in range(200)])
    loose = Logistic.fit(noise, right, ridge=1.0)
    assert np.abs(fitted.weights).sum() < np.abs(loose.weights).sum()


def test_what_can_be_told_apart_perfectly_has_a_finite_fit() -> None:
    x = np.linspace(-1, 1, 100)[:, None]
    model = Logistic.fit(x, x[:, 0] > 0, ridge=1.0)
    assert np.isfinite(model.weights).all()
    assert auroc(model(x), x[:, 0] > 0) == 1.0


def test_isotonic_calibrates_what_it_has_not_seen_and_keeps_the_order() -> None:
    scores = RNG.normal(size=8000)
    right = RNG.random(8000) < 1 / (1 + np.exp(-3 * scores))
    model = Isotonic.fit(scores[:4000], right[:4000])
    told = model(scores[4000:])
    assert (np.diff(model(np.sort(scores))) >= 0).all()
    assert calibration_error(told, right[4000:]) < 0.025
    assert auroc(told, right[4000:]) == pytest.approx(auroc(scores[4000:], right[4000:]), abs=0.005)


def test_isotonic_pools_what_is_out_of_order() -> None:
    scores = np.repeat([1.0, 2.0, 3.0, 4.0], 100)
    shares = np.repeat([0.2, 0.6, 0.4, 0.9], 100)
    right = np.arange(400) % 100 < shares * 100
    model = Isotonic.fit(scores, right)
    assert model.knots.tolist() == [1.0, 2.5, 4.0]
    assert model.values.tolist() == pytest.approx([20.5 / 101, 100.5 / 201, 90.5 / 101])


def test_no_confidence_is_certain() -> None:
    model = Isotonic.fit(np.arange(50.0), np.ones(50, bool))
    assert 0.9 < model(np.array(1e9)) < 1.0
    assert Isotonic.fit(np.arange(50.0), np.zeros(50, bool))(np.array(0.0)) > 0.0


@pytest.mark.parametrize(
    "broken",
    [
        {"knots": [], "values": []},
        {"knots": [0.0, 1.0], "values": [0.5]},
        {"knots": [0.0, 1.0], "values": [0.5, 0.4]},
        {"knots": [1.0, 0.0], "values": [0.4, 0.5]},
        {"knots": [0.0], "values": [1.5]},
        {"knots": [float("nan")], "values": [0.5]},
        {"knots": [0.0], "values": "a"},
    ],
)
def test_a_map_that_can_not_be_is_refused(broken: dict) -> None:
    with pytest.raises((ValueError, TypeError)):
        Isotonic.of_dict(broken)

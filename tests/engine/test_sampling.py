from __future__ import annotations

import numpy as np
import pytest

from edgevlm.engine.sampling import Sampler, Sampling, log_normalizer, top_k_ids
from edgevlm.errors import UsageError

# Probabilities of ids 0..4 at temperature 1.
SHARES = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
LOGITS = np.log(SHARES).astype(np.float32)


def drawn(n: int = 4000, seen: tuple[int, ...] = (), **options: object) -> np.ndarray:
    """Share of each id among n draws."""
    sampler = Sampler(Sampling(temperature=1, seed=0, **(options)), seen)  # type: ignore[arg-type]
    return np.bincount([sampler.choose(LOGITS) for _ in range(n)], minlength=5) / n


def test_greedy_takes_the_largest() -> None:
    assert Sampler(Sampling(), ()).choose(LOGITS) == 0


def test_temperature_one_draws_the_models_own_distribution() -> None:
    assert drawn() == pytest.approx(SHARES, abs=0.03)


def test_temperature_sharpens() -> None:
    sampler = Sampler(Sampling(temperature=0.5, seed=0), ())
    shares = np.bincount([sampler.choose(LOGITS) for _ in range(4000)], minlength=5) / 4000
    expected = SHARES**2 / (SHARES**2).sum()
    assert shares == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("temperature", [1e-3, 1e-320])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, seed=0), ())
    assert {sampler.choose(LOGITS) for _ in range(20)} == {0}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_p": 0.75}, 2),
        ({"top_p": 0.76}, 3),
        ({"top_p": 0.01}, 1),
        ({"min_p": 0.29}, 3),
        ({"min_p": 0.31}, 2),
        ({"top_k": 4, "top_p": 0.8, "min_p": 0.1}, 3),
    ],
)
def test_filters_keep_the_best(options: dict[str, float], kept: int) -> None:
    shares = drawn(**options)
    assert shares[kept:].sum() == 0
    assert shares[:kept] == pytest.approx(SHARES[:kept] / SHARES[:kept].sum(), abs=0.03)


def test_a_seed_repeats_and_another_differs() -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed), ())
        return [sampler.choose(LOGITS) for _ in range(50)]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_repetition_penalty_is_over_prompt_and_answer() -> None:
    sampler = Sampler(Sampling(repetition_penalty=3.0), seen=[0])
    # -0.69 * 3 = -2.08 falls below id 1 (-1.39); then id 1 is penalised too (-4.2).
    assert [sampler.choose(LOGITS) for _ in range(3)] == [1, 2, 0]


def test_repetition_penalty_divides_positive_logits() -> None:
    logits = np.array([2.0, 1.5], np.float32)
    assert Sampler(Sampling(repetition_penalty=2.0), seen=[0]).choose(logits) == 1


def test_choosing_leaves_the_logits_alone() -> None:
    before = LOGITS.copy()
    Sampler(Sampling(temperature=1, top_p=0.5, repetition_penalty=2), [1]).choose(LOGITS)
    assert (before == LOGITS).all()


def test_log_normalizer_does_not_overflow() -> None:
    assert log_normalizer(np.array([1000, 1000], np.float32)) == pytest.approx(1000 + np.log(2))


def test_top_k_ids_are_ordered_and_bounded() -> None:
    assert list(top_k_ids(LOGITS, 3)) == [0, 1, 2]
    assert len(top_k_ids(LOGITS, 50)) == 5


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": float("inf")},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": (5,)},
        {"max_tokens": 5.0},
        {"top_k": "5"},
        {"temperature": "1"},
        {"seed": 1.5},
        {"stop": "END"},
        {"top_logprobs": -1},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Sampling(**options)  # type: ignore[arg-type]

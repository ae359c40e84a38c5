"""Choosing the next token from logits, and what the model itself thought of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import RuntimeFailed, UsageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. The defaults are greedy.

    `temperature` 0 takes the most likely token and ignores the filters. `top_k` 0,
    `top_p` 1 and `min_p` 0 are off. `repetition_penalty` is CTRL's (Keskar et al. 2019,
    arXiv:1909.05858), over prompt and answer. `min_p` keeps tokens of at least that
    share of the best one's probability (Nguyen et al. 2024, arXiv:2407.01082).
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name, kind, allowed in _KINDS:
            value = getattr(self, name)
            _require(isinstance(value, kind), name, value, allowed)
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more")
        _require(0 <= self.temperature < 100, "temperature", self.temperature, "0 to 100")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "0 to 1")
        penalty = self.repetition_penalty
        _require(0.01 <= penalty <= 100, "repetition_penalty", penalty, "0.01 to 100")
        _require(self.seed is None or self.seed >= 0, "seed", self.seed, "0 or more")
        _require(0 <= self.top_logprobs <= 100, "top_logprobs", self.top_logprobs, "0 to 100")
        whole = isinstance(self.stop, tuple) and all(
            isinstance(text, str) and text for text in self.stop
        )
        _require(whole, "stop", self.stop, "a tuple of strings that are not empty")


_KINDS: tuple[tuple[str, Any, str], ...] = (
    *((name, Integral, "a whole number") for name in ("max_tokens", "top_k", "top_logprobs")),
    *((name, Real, "a number") for name in ("temperature", "top_p", "min_p")),
    ("repetition_penalty", Real, "a number"),
    ("seed", (Integral, type(None)), "a whole number"),
)


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise UsageError(f"{name} can't be {value!r}.", hint=f"Use {allowed}.")


def log_normalizer(
    logits: NDArray[np.float32], scratch: NDArray[np.float32] | None = None
) -> float:
    """Return log(sum(exp(logits))). Raises RuntimeFailed where the logits are not finite.

    `scratch` float32 [n_vocab] is overwritten: fresh memory of that size costs page faults
    at every step.
    """
    largest = logits.max()
    with np.errstate(invalid="ignore"):  # an infinite logit is told below
        shifted = np.subtract(logits, largest, out=scratch)
        np.exp(shifted, out=shifted)
    total = float(largest) + float(np.log(shifted.sum()))
    if not np.isfinite(total):
        raise RuntimeFailed(
            "The model produced numbers that are not finite.",
            hint="Its files or the runtime are at fault: try `edgevlm model verify`.",
        )
    return total


def top_k_ids(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return the ids of the k largest logits, largest first."""
    k = min(k, logits.size)
    ids = np.argpartition(logits, -k)[-k:]
    order: NDArray[np.intp] = ids[np.argsort(-logits[ids], kind="stable")]
    return order


class Sampler:
    """Draws ids under one `Sampling`, remembering what a repetition penalty needs."""

    def __init__(self, sampling: Sampling, seen: Iterable[int]) -> None:
        self._sampling = sampling
        self._seen = set(seen) if sampling.repetition_penalty != 1.0 else set()
        self._rng = np.random.default_rng(sampling.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Return the next id for logits [n_vocab], which stay untouched."""
        if self._sampling.repetition_penalty != 1.0:
            logits = self._penalised(logits)
        greedy = self._sampling.temperature == 0
        chosen = int(logits.argmax()) if greedy else self._draw(logits)
        if self._sampling.repetition_penalty != 1.0:
            self._seen.add(chosen)
        return chosen

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        ids = np.fromiter((i for i in self._seen if i < logits.size), dtype=np.int64)
        penalty = np.float32(self._sampling.repetition_penalty)
        logits = logits.copy()
        seen = logits[ids]
        logits[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
        return logits

    def _draw(self, logits: NDArray[np.float32]) -> int:
        s = self._sampling
        ids = top_k_ids(logits, s.top_k) if s.top_k else np.argsort(-logits, kind="stable")
        # The best first: its 0 stays one at the smallest temperature, where a logit would overflow.
        below = logits[ids].astype(np.float64) - logits[ids[0]]
        with np.errstate(over="ignore"):
            probabilities = np.exp(below / s.temperature)
        probabilities /= probabilities.sum()
        keep = probabilities >= s.min_p * probabilities[0]
        if s.top_p < 1:
            # The smallest set that reaches top_p: a token stays if those before it fall short.
            keep &= np.cumsum(probabilities) - probabilities < s.top_p
        probabilities = probabilities[keep]
        return int(self._rng.choice(ids[keep], p=probabilities / probabilities.sum()))

"""How sure an answer is: the calibrations of one model, looked up once for each set of adapters."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgevlm.engine.sampling import Sampling
from edgevlm.messages import ActiveAdapter, Token, Usage
from edgevlm.routing.calibration import PREFIXES
from edgevlm.routing.confidence import Confidence, Judgement
from edgevlm.routing.features import TOP_LOGPROBS, Asked
from edgevlm.routing.picture import PictureStats
from edgevlm.settings import Settings


@dataclass(frozen=True, slots=True)
class Subject:
    """What is known before an answer: its question, and the first of its pictures."""

    question: str = ""
    picture: PictureStats | None = None


class Judge:
    """Rates the answers of one model. Safe for threads.

    Calibrations are those of when they first were needed: one that is made later counts from
    the next start on.
    """

    def __init__(
        self, model: str, edition: int | None, quantization: str, settings: Settings
    ) -> None:
        self._of = (model, edition, quantization)
        self._settings = settings
        self._known: dict[tuple[ActiveAdapter, ...], Confidence | None] = {}
        self._lock = threading.Lock()

    def confidence(self, adapters: tuple[ActiveAdapter, ...]) -> Confidence | None:
        """None where nobody calibrated it with these adapters. Raises ModelCorrupt."""
        with self._lock:
            if adapters not in self._known:
                self._known[adapters] = Confidence.for_model(*self._of, adapters, self._settings)
            return self._known[adapters]

    def version(self, adapters: tuple[ActiveAdapter, ...]) -> str | None:
        """What tells one calibration from another."""
        confidence = self.confidence(adapters)
        return None if confidence is None else confidence.calibration.data.digest

    def sampling(self, sampling: Sampling, adapters: tuple[ActiveAdapter, ...]) -> Sampling:
        """With as many candidates for each token as it reads."""
        if self.confidence(adapters) is None or sampling.top_logprobs >= TOP_LOGPROBS:
            return sampling
        return replace(sampling, top_logprobs=TOP_LOGPROBS)

    def rate(
        self,
        tokens: Sequence[Token],
        subject: Subject,
        usage: Usage,
        adapters: tuple[ActiveAdapter, ...],
    ) -> Judgement | None:
        """None where nobody calibrated it, or there is nothing to rate."""
        confidence = self.confidence(adapters)
        if confidence is None or not tokens:
            return None
        return confidence.judge(tokens, _asked(subject, usage))

    def rate_so_far(
        self,
        tokens: Sequence[Token],
        subject: Subject,
        usage: Usage,
        adapters: tuple[ActiveAdapter, ...],
    ) -> Judgement | None:
        """Of an answer that is still coming; None between the lengths that were calibrated."""
        if len(tokens) not in PREFIXES:
            return None
        confidence = self.confidence(adapters)
        return (
            None if confidence is None else confidence.judge_so_far(tokens, _asked(subject, usage))
        )


def _asked(subject: Subject, usage: Usage) -> Asked:
    return Asked(subject.question, subject.picture, usage.prompt_tokens, usage.image_tokens)


def shortened(token: Token, most: int) -> Token:
    """With `most` candidates at the most: those that were asked for."""
    return token if len(token.top) <= most else replace(token, top=token.top[:most])

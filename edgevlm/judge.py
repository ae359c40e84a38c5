"""How sure an answer is: the calibrations of one model, looked up once for each set of adapters."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.messages import ActiveAdapter, Token, Usage
from edgevlm.model import Model
from edgevlm.routing.calibration import PREFIXES
from edgevlm.routing.confidence import Confidence, Judgement
from edgevlm.routing.features import Asked
from edgevlm.routing.picture import PictureStats
from edgevlm.routing.probe import LogitPool
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

    def __init__(self, model: Model, settings: Settings) -> None:
        self._of = (model.name, model.files.edition, model.quantization)
        self._settings = settings
        self._known: dict[tuple[ActiveAdapter, ...], Confidence | None] = {}
        self._lock = threading.Lock()

    def begin(self, adapters: tuple[ActiveAdapter, ...], subject: Subject) -> Rating:
        """Rate an answer with these adapters as it comes. Raises ModelCorrupt."""
        return Rating(self._confidence(adapters), subject)

    def version(self, adapters: tuple[ActiveAdapter, ...]) -> str | None:
        """What tells one calibration from another; None where nobody calibrated the model."""
        confidence = self._confidence(adapters)
        return None if confidence is None else confidence.calibration.version

    def _confidence(self, adapters: tuple[ActiveAdapter, ...]) -> Confidence | None:
        with self._lock:
            if adapters not in self._known:
                self._known[adapters] = Confidence.for_model(*self._of, adapters, self._settings)
            return self._known[adapters]


class Rating:
    """Of one answer. `pool` takes in the logits of its steps, where its model's calibration
    looks at them."""

    def __init__(self, confidence: Confidence | None, subject: Subject) -> None:
        self._confidence = confidence
        self._subject = subject
        probed = confidence is not None and confidence.calibration.probed is not None
        self.pool = LogitPool() if probed else None

    def of(self, tokens: Sequence[Token], usage: Usage) -> Judgement | None:
        """None where nobody calibrated the model, or there is nothing to rate."""
        if self._confidence is None or not tokens:
            return None
        return self._confidence.judge(tokens, self._asked(usage), self.pool)

    def so_far(self, tokens: Sequence[Token], usage: Usage) -> Judgement | None:
        """Of an answer that is still coming; None between the lengths that were calibrated."""
        if self._confidence is None or len(tokens) not in PREFIXES:
            return None
        return self._confidence.judge_so_far(tokens, self._asked(usage))

    def _asked(self, usage: Usage) -> Asked:
        subject = self._subject
        return Asked(subject.question, subject.picture, usage.prompt_tokens, usage.image_tokens)

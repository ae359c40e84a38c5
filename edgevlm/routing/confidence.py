"""How likely an answer is to be right, from its own tokens, its question and its picture.

    confidence = Confidence.for_model("edgevlm-tiny", 5, "decoder q4, vision fp16")
    judgement = confidence.judge(reply.tokens, Asked(question, picture_stats(rgb), ...))
    judgement.confidence, judgement.unsure

A model without a calibration of its own gets no confidence: another's would be a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm.messages import ActiveAdapter, Token
from edgevlm.routing.arrays import Floats
from edgevlm.routing.calibration import Calibration, Scale, Subject
from edgevlm.routing.certificate import Certificate
from edgevlm.routing.features import Asked, features_of
from edgevlm.routing.probe import LogitPool
from edgevlm.routing.shelf import Shelf
from edgevlm.settings import Settings, load_settings

# Below which an answer is more likely wrong than right.
EVEN = 0.5


@dataclass(frozen=True, slots=True)
class Judgement:
    """`confidence` is the calibrated probability of being right, `score` the log-odds that it is
    read from. `unsure` is below the certified threshold, or below EVEN where there is none."""

    confidence: float
    score: float
    unsure: bool


class Confidence:
    """What judges the answers of one model as it runs. Safe for threads; it has no state."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    @classmethod
    def for_model(
        cls,
        model: str,
        edition: int | None,
        quantization: str,
        adapters: Sequence[ActiveAdapter] = (),
        settings: Settings | None = None,
    ) -> Confidence | None:
        """The one made on this device, or else the one that ships; None where there is neither.

        `quantization` and `adapters` are as in `Reply`. Raises ModelCorrupt for a calibration
        that can't be read.
        """
        subject = Subject.of(model, edition, quantization, adapters)
        calibration = Shelf(settings or load_settings()).find(subject)
        return None if calibration is None else cls(calibration)

    @property
    def certificate(self) -> Certificate | None:
        """The guarantee in force for answers whose logits were pooled, or else for the others;
        None where there is none."""
        return (self.calibration.probed or self.calibration.whole).certificate

    def judge(
        self, tokens: Sequence[Token], asked: Asked, pool: LogitPool | None = None
    ) -> Judgement:
        """Judge a whole answer; better with the `pool` of the logits that it was chosen from."""
        features, probed = features_of(tokens, asked), self.calibration.probed
        if pool is not None and probed is not None and pool.steps:
            return _judged(probed, np.concatenate([features, pool.mean]))
        return _judged(self.calibration.whole, features)

    def judge_so_far(self, tokens: Sequence[Token], asked: Asked) -> Judgement | None:
        """Judge an answer that is still coming by its first tokens, with the calibration for as
        many; None before the first. No certificate is for it: `unsure` is below EVEN."""
        length = max((n for n in self.calibration.prefixes if n <= len(tokens)), default=0)
        if not length:
            return None
        scale = self.calibration.prefixes[length]
        return _judged(scale, features_of(tokens[:length], asked))

    def score(self, tokens: Sequence[Token], asked: Asked, pool: LogitPool | None = None) -> float:
        """The calibrated probability of being right, of a whole answer."""
        return self.judge(tokens, asked, pool).confidence


def _judged(scale: Scale, numbers: Floats) -> Judgement:
    score = float(scale.score(numbers))
    probability = float(scale.probability(np.array(score)))
    certificate = scale.certificate
    unsure = probability < EVEN if certificate is None else score < certificate.threshold
    return Judgement(probability, score, unsure)

"""What confidence is made of: numbers about an answer, its question and its picture.

From the tokens come what is known to rank answers (margins, quantiles of logprobs, the first
token, entropy, length); from the question its type, since a model errs more at counting than at
colours; from the picture what makes it hard to see. All of it costs a fraction of a millisecond.

A token's other candidates are left out: with five of them answers ranked no better, and a
confidence that changes with `top_logprobs` would be a strange one. Only baselines look at them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm.messages import Token
from edgevlm.routing.arrays import Floats
from edgevlm.routing.picture import PictureStats
from edgevlm.routing.question import ANSWER_TYPES, QUESTION_TYPES, answer_type, question_type

_LEAST = -20.0  # a logprob below says nothing more

_TOKEN = (
    "logprob mean", "logprob min", "logprob 10%", "logprob 25%", "logprob first",
    "margin mean", "margin min", "margin first",
    "entropy mean", "entropy max", "entropy first",
    "tokens",
)  # fmt: skip
_PICTURE = ("picture", "short side", "sharpness", "contrast", "strokes", "flat", "image share")
NAMES: tuple[str, ...] = (
    *_TOKEN,
    *(f"asked: {name}" for name in QUESTION_TYPES),
    *(f"answered: {name}" for name in ANSWER_TYPES),
    *_PICTURE,
)
# Single figures that others route by, to be compared with; the larger the surer.
BASELINES = ("mean logprob", "entropy", "margin", "question length")


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer's confidence is computed from beside its tokens.

    `picture` is None for a question without one; `prompt_tokens` and `image_tokens` are those of
    `edgevlm.Usage`.
    """

    question: str
    picture: PictureStats | None = None
    prompt_tokens: int = 0
    image_tokens: int = 0


def features_of(tokens: Sequence[Token], asked: Asked) -> Floats:
    """Numbers [len(NAMES)] in the order of NAMES; zeros where there is nothing to measure."""
    question = question_type(asked.question)
    answer = answer_type("".join(token.text for token in tokens))
    return np.array(
        [
            *token_features(tokens),
            *(float(name == question) for name in QUESTION_TYPES),
            *(float(name == answer) for name in ANSWER_TYPES),
            *_picture_features(asked),
        ]
    )


def token_features(tokens: Sequence[Token]) -> list[float]:
    """The features of _TOKEN. Margins are of probabilities' logarithms, in nats."""
    if not tokens:
        return [0.0] * len(_TOKEN)
    logprobs = [max(token.logprob, _LEAST) for token in tokens]
    margins, entropies = zip(*map(_spread, logprobs), strict=True)
    ranked, count = sorted(logprobs), len(tokens)
    return [
        sum(logprobs) / count,
        ranked[0],
        _quantile(ranked, 0.1),
        _quantile(ranked, 0.25),
        logprobs[0],
        sum(margins) / count,
        min(margins),
        margins[0],
        sum(entropies) / count,
        max(entropies),
        entropies[0],
        math.log1p(count),
    ]


# Plain Python from here on: an array for five numbers takes longer than they do.
def _quantile(ranked: Sequence[float], share: float) -> float:
    """Between the two values beside it, as numpy has it."""
    place = share * (len(ranked) - 1)
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (place - below) * (ranked[above] - ranked[below])


def _spread(logprob: float) -> tuple[float, float]:
    """By how many nats a token is likelier than all others together, and the entropy in nats
    where these count as one."""
    mass = math.exp(logprob)
    rest = max(1.0 - mass, 1e-9)
    return min(logprob - math.log(rest), -_LEAST), -mass * logprob - rest * math.log(rest)


def _picture_features(asked: Asked) -> list[float]:
    picture = asked.picture
    share = asked.image_tokens / asked.prompt_tokens if asked.prompt_tokens else 0.0
    if picture is None:
        return [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, share]
    return [
        1.0,
        math.log2(max(min(picture.width, picture.height), 1)),
        math.log1p(picture.sharpness),
        math.log1p(picture.contrast),
        picture.strokes,
        picture.flat,
        share,
    ]


def baselines_of(tokens: Sequence[Token], question: str) -> dict[str, float]:
    """The figures of BASELINES. Entropy and margin are of the candidates that tokens come with."""
    count = max(len(tokens), 1)
    margins, entropies = zip(*map(_candidates, tokens), strict=True) if tokens else ((0,), (0,))
    return {
        "mean logprob": sum(max(token.logprob, _LEAST) for token in tokens) / count,
        "entropy": -sum(entropies) / count,
        "margin": sum(margins) / count,
        "question length": -float(len(question)),
    }


def _candidates(token: Token) -> tuple[float, float]:
    """By how many nats the token is likelier than the next candidate, and the entropy in nats of
    the candidates, all others counted as one."""
    chosen = max(token.logprob, _LEAST)
    others = [max(c.logprob, _LEAST) for c in token.top if c.id != token.id]
    if not others:
        return _spread(chosen)
    masses = [math.exp(logprob) for logprob in (chosen, *others)]
    rest = max(1.0 - sum(masses), 1e-9)
    entropy = -sum(p * math.log(p) for p in (*masses, rest))
    return chosen - max(others), entropy

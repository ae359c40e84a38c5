"""Questions and answers as a cache gets them, of pictures of random pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm import Sampling
from edgevlm.cache import Asked, Picture, Said
from edgevlm.messages import ActiveAdapter, Reply, Timings, Token, TopToken, Usage

RUNTIME = {"vision": "onnx", "language": "llamacpp"}
ADAPTERS = ((("aa" * 32, 1.0),), ())
QUESTION = "What is in this picture?"


def pixels(seed: int, height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(seed: int = 0, **size: int) -> Picture:
    return Picture.of(pixels(seed, **size), "auto", None)


def talk(question: str, *shown: Picture, system: str | None = None) -> tuple[Said, ...]:
    before = () if system is None else (Said("system", (system,)),)
    return (*before, Said("user", (*shown, question)))


def asked(conversation: Sequence[Said] | None = None, **changes: Any) -> Asked:
    fields: dict[str, Any] = {
        "conversation": talk(QUESTION, picture()) if conversation is None else conversation,
        "model": "edgevlm-tiny",
        "weights": "0123",
        "quantization": "language 4 bits, vision 16 bits",
        "runtime": RUNTIME,
        "context_length": 2048,
        "adapters": ADAPTERS,
        "told": (ActiveAdapter("shapes", 1.0),),
        "notices": ("Not a diagnosis.",),
        "sampling": Sampling(),
        "schema": None,
        "rated_by": None,
    }
    return Asked(**(fields | changes))


def reply(text: str = "A circle and a square.", **changes: Any) -> Reply:
    words = text.split(" ")
    tokens = [
        Token(
            i, word if i == 0 else f" {word}", -0.25 * i, (TopToken(i, word, -0.25 * i),) * (i % 3)
        )
        for i, word in enumerate(words)
    ]
    fields: dict[str, Any] = {
        "text": text,
        "tokens": tuple(tokens),
        "model": "edgevlm-tiny",
        "runtime": RUNTIME,
        "quantization": "language 4 bits, vision 16 bits",
        "finish_reason": "stop",
        "usage": Usage(120, 102, 0, len(tokens)),
        "timings": Timings(total_ms=800.0),
        "confidence": 0.75,
        "adapter": (ActiveAdapter("shapes", 1.0),),
        "notices": ("Not a diagnosis.",),
    }
    return Reply(**(fields | changes))

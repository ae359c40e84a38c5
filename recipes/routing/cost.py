"""What a confidence costs: milliseconds an answer and a picture.

python recipes/routing/cost.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles

import numpy as np

from edgevlm.messages import Token
from edgevlm.routing.calibration import Calibration
from edgevlm.routing.confidence import Confidence
from edgevlm.routing.features import Asked
from edgevlm.routing.picture import picture_stats
from edgevlm.routing.probe import LogitPool
from edgevlm.routing.shelf import SHIPPED, read_calibration

ROUNDS = 500
LENGTHS = (3, 10, 48)
SIZES = ((640, 480), (4000, 3000))


def milliseconds(call: Callable[[], object]) -> list[float]:
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call()
        taken.append((time.perf_counter() - started) * 1000)
    return taken


def answer(length: int, rng: np.random.Generator) -> list[Token]:
    return [Token(0, " word", -float(rng.exponential(0.1))) for _ in range(length)]


def shipped() -> Calibration:
    return read_calibration(min(SHIPPED.glob("edgevlm-tiny.*.json")))


def main() -> None:
    rng = np.random.default_rng(0)
    confidence = Confidence(shipped())
    print("| what | median ms | p95 ms |\n|---|---|---|")
    for width, height in SIZES:
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        told(f"a picture of {width} x {height}", milliseconds(lambda p=pixels: picture_stats(p)))
    asked = Asked("How many red cups are there?", picture_stats(pixels), 150, 102)
    for length in LENGTHS:
        tokens = answer(length, rng)
        taken = milliseconds(lambda t=tokens: confidence.judge(t, asked))
        told(f"an answer of {length} tokens", taken)
    pool, logits = LogitPool(), rng.normal(size=49_152).astype(np.float32)
    told("pooling the logits of a token", milliseconds(lambda: pool.add(logits)))
    taken = milliseconds(lambda: confidence.judge(tokens, asked, pool))
    told(f"an answer of {length} tokens with its pool", taken)


def told(what: str, taken: list[float]) -> None:
    print(f"| {what} | {median(taken):.3f} | {quantiles(taken, n=20)[-1]:.3f} |")


if __name__ == "__main__":
    main()

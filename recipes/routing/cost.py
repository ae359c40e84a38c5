"""What a confidence costs: milliseconds an answer and a picture.

python recipes/routing/cost.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles

import numpy as np

from edgevlm.messages import Token, TopToken
from edgevlm.routing.calibration import Calibration
from edgevlm.routing.confidence import Confidence
from edgevlm.routing.features import TOP_LOGPROBS, Asked
from edgevlm.routing.picture import picture_stats
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
    def token() -> Token:
        logprobs = np.log(rng.dirichlet(np.geomspace(10, 0.1, TOP_LOGPROBS + 1)))
        top = tuple(TopToken(i, "word", float(p)) for i, p in enumerate(logprobs[:-1]))
        return Token(0, " word", float(logprobs[0]), top)

    return [token() for _ in range(length)]


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


def told(what: str, taken: list[float]) -> None:
    print(f"| {what} | {median(taken):.2f} | {quantiles(taken, n=20)[-1]:.2f} |")


if __name__ == "__main__":
    main()

"""What a cached answer costs: hashing the picture, making the key, and reading the answer.

    python tests/bench/cache_hit.py                 640 x 480 and 12 megapixels, 1,000 answers kept
    python tests/bench/cache_hit.py --tokens 256 --top 5

Pictures are decoded already, as both a hit and a miss need; what is hashed here a miss hashes too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))
from answer_factory import asked, picture, reply, talk

from edgevlm.cache import AnswerCache, Asked, Picture
from edgevlm.messages import Reply, Token, TopToken
from edgevlm.settings import Settings

SIZES = {"640 x 480": (480, 640), "12 megapixels": (3000, 4000)}


def main() -> None:
    arguments = _arguments()
    answer = _answer(arguments.tokens, arguments.top)
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(AnswerCache(Settings(Path(folder)))) as cache,
    ):
        shown = picture()
        for n in range(arguments.kept):
            cache.put(asked(talk(f"Question {n}?", shown)), answer)
        for name, (height, width) in SIZES.items():
            rng = np.random.default_rng(0)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            assert cache.put(_asked(pixels), answer)
            times = [_hit(cache, pixels) for _ in range(arguments.rounds)]
            rows.append({"picture": name} | _told(times))
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'milliseconds, median':<24}{'hash':>9}{'answer':>9}{'both':>9}{'99%':>9}")
    for row in rows:
        cells = (row[key] for key in ("hash_ms", "answer_ms", "both_ms", "both_p99_ms"))
        print(f"{row['picture']:<24}" + "".join(f"{cell:>9.2f}" for cell in cells))


def _answer(tokens: int, top: int) -> Reply:
    candidates = tuple(TopToken(i, " word", -1.5 * i) for i in range(top))
    steps = tuple(Token(i, " word", -0.123456789, candidates) for i in range(tokens))
    return reply(tokens=steps)


def _asked(pixels: NDArray[np.uint8]) -> Asked:
    return asked(talk("What is it?", Picture.of(pixels, "auto", None)))


def _hit(cache: AnswerCache, pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Seconds until the picture is hashed, and from then until the answer is there."""
    started = time.perf_counter()
    question = _asked(pixels)
    hashed = time.perf_counter()
    assert cache.get(question) is not None
    return hashed - started, time.perf_counter() - hashed


def _told(times: list[tuple[float, float]]) -> dict[str, float]:
    hashes, answers = np.array(times).T * 1000
    both = hashes + answers
    return {
        "hash_ms": float(np.median(hashes)),
        "answer_ms": float(np.median(answers)),
        "both_ms": float(np.median(both)),
        "both_p99_ms": float(np.quantile(both, 0.99)),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--kept", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--top", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""First token of a first question about a picture, against a follow-up's on the same picture.

    python tests/bench/follow_up.py                         the built-in model
    python tests/bench/follow_up.py --model FOLDER --image photo.jpg
    python tests/bench/follow_up.py --random-256m           SmolVLM-256M's sizes, random weights
    python tests/bench/follow_up.py --random-256m --runtime llamacpp

Both figures are `timings.ttft_ms` of the same session; every round begins a new
conversation on a picture that the session has not seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from random_models import random_256m

from edgevlm import Session, load_settings

FIRST = "What is in this picture?"
SECOND = "And what colour is it?"


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        name = arguments.model
        if arguments.random_256m:
            name = str(random_256m(Path(folder), arguments.runtime or "onnx"))
        with Session(name, arguments.runtime, settings=load_settings(cache="off")) as session:
            rounds = [_round(session, arguments.image, n) for n in range(arguments.rounds)]
    first, second = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    if arguments.json:
        print(json.dumps({"first_ms": first, "follow_up_ms": second, "ratio": ratio}))
    else:
        print(f"first question {first:8.1f} ms\nfollow-up      {second:8.1f} ms\nratio {ratio:.1f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="edgevlm-tiny")
    parser.add_argument("--runtime")
    parser.add_argument("--image", type=Path, default=Path("examples/photo.jpg"))
    parser.add_argument("--random-256m", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _round(session: Session, path: Path, number: int) -> tuple[float, float]:
    """TTFT in ms of a first question about a picture of its own, and of a follow-up."""
    pixels = np.array(Image.open(path).convert("RGB"))
    pixels[0, 0] = number  # another picture as far as every cache is concerned
    session.reset()
    first = session.ask(FIRST, images=[pixels], max_tokens=16)
    second = session.ask(SECOND, max_tokens=16)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1
    return first.timings.ttft_ms, second.timings.ttft_ms


if __name__ == "__main__":
    main()

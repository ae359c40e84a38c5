"""First token of a first question about a picture, against a follow-up's on the same picture.

    python tests/bench/follow_up.py                         the built-in model
    python tests/bench/follow_up.py --model FOLDER --image photo.jpg
    python tests/bench/follow_up.py --random-256m           SmolVLM-256M's sizes, random weights

Both figures are `timings.ttft_ms` of the same session; every round begins a new
conversation on a picture that the session has not seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from edgevlm import Session

FIRST = "What is in this picture?"
SECOND = "And what colour is it?"


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        name = _random_256m(Path(folder)) if arguments.random_256m else arguments.model
        with Session(name) as session:
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


def _random_256m(folder: Path) -> str:
    """SmolVLM-256M's architecture: SigLIP-B/16 at 512 px, SmolLM2-135M, q4 decoder."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from smolvlm_factory import Dims, make_random_model

    from edgevlm.models.onnx_export import export_onnx

    dims = Dims(
        layers=30,
        hidden=576,
        intermediate=1536,
        heads=9,
        kv_heads=3,
        vision_layers=12,
        vision_hidden=768,
        vision_intermediate=3072,
        vision_heads=12,
    )
    make_random_model(
        folder / "source",
        seed=0,
        variant="smolvlm",
        image_size=512,
        patch_size=16,
        scale_factor=4,
        longest_edge=512,
        dims=dims,
    )
    export_onnx(folder / "source", folder / "onnx", decoder_bits=4, vision_bits=16)
    return str(folder / "onnx")


if __name__ == "__main__":
    main()

"""How long each part of an answer goes on after a cancel, and that the next question is answered.

    python tests/bench/cancel.py --runtime onnx
    python tests/bench/cancel.py --runtime llamacpp --rounds 5
    python tests/bench/cancel.py --model FOLDER --runtime mlx

On SmolVLM-256M's sizes with random weights unless a model is named. An answer in another
thread is cancelled while it encodes the picture, reads the prompt, and writes; the figure
is the time from `cancel()` until the answer has ended.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from random_models import random_256m

from edgevlm import Session, load_settings
from edgevlm.messages import Timings

PHASES = ("vision", "prefill", "decode")
QUESTION = "What is in this picture? " + "Look at every part of it before you answer. " * 40


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        name = arguments.model or str(random_256m(Path(folder), arguments.runtime))
        with Session(name, arguments.runtime, settings=load_settings(cache="off")) as session:
            whole = session.ask(QUESTION, images=[_picture(0)], max_tokens=arguments.tokens)
            print(
                f"{arguments.runtime}: vision {whole.timings.vision_ms:.0f} ms,"
                f" first token {whole.timings.ttft_ms:.0f} ms,"
                f" all {whole.timings.total_ms:.0f} ms"
            )
            for phase in PHASES:
                lags = [
                    _lag(session, phase, n + 1, arguments.tokens, whole.timings)
                    for n in range(arguments.rounds)
                ]
                print(
                    f"  {phase:8} median {statistics.median(lags):6.1f} ms,"
                    f" longest {max(lags):6.1f} ms"
                )


def _lag(session: Session, phase: str, number: int, tokens: int, whole: Timings) -> float:
    """Milliseconds from a cancel in the middle of the phase to the end of the answer."""
    vision, first = whole.vision_ms, whole.ttft_ms
    at = {"vision": vision / 2, "prefill": (vision + first) / 2, "decode": None}[phase]
    session.reset()
    ended: list[float] = []
    reasons: list[str] = []
    writing = threading.Event()

    def answer() -> None:
        stream = session.stream(QUESTION, images=[_picture(number)], max_tokens=tokens)
        for count, _ in enumerate(stream):
            if count == 1:
                writing.set()
        ended.append(time.perf_counter())
        reasons.append(stream.reply.finish_reason)
        writing.set()

    thread = threading.Thread(target=answer)
    thread.start()
    writing.wait(None if at is None else at / 1000)
    asked = time.perf_counter()
    session.cancel()
    thread.join()
    if reasons != ["cancelled"]:
        raise SystemExit(f"the answer was over before the cancel in its {phase}")
    after = session.ask("And now?", images=[_picture(number)], max_tokens=2)
    if not after.usage.completion_tokens:
        raise SystemExit("the next question was not answered")
    return (ended[0] - asked) * 1000


def _picture(number: int) -> np.ndarray:
    """Another picture each time, so that nothing is known of it."""
    return np.random.default_rng(number).integers(0, 256, (512, 512, 3), dtype=np.uint8)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--runtime", default="onnx")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""What a session costs: the first token about a picture, the tokens after it, and its memory.

    python tests/bench/session_cost.py                              edgevlm-tiny on ONNX Runtime
    python tests/bench/session_cost.py --runtime onnx+llamacpp --pictures 8
    python tests/bench/session_cost.py --image photo.jpg --json

Each of `--pictures` is the image at 640 x 480, changed by a pixel, so that none was seen before,
and is asked about in a conversation of its own. Memory is the most that was resident, after the
first answer and after the last, of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm import Session, load_settings

SIZE = (640, 480)
QUESTION = "Describe this image."


def main() -> None:
    arguments = _arguments()
    if arguments.alone:
        print(json.dumps(measure(arguments)))
        return
    # Linux lets a process inherit the peak of the one that starts it: ours is low still.
    command = [sys.executable, __file__, *sys.argv[1:], "--alone"]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    if arguments.json:
        print(run.stdout, end="")
        return
    for name, value in json.loads(run.stdout).items():
        print(f"{name:36}{value:>16}")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    first, speed, memory = [], [], []
    with Session(
        arguments.model, arguments.runtime, settings=load_settings(cache="off")
    ) as session:
        for number in range(arguments.pictures):
            session.reset()
            reply = session.ask(QUESTION, images=[_picture(arguments.image, number)])
            first.append(reply.timings.ttft_ms)
            speed.append(reply.timings.decode_tps)
            memory.append(reply.peak_rss_bytes / 2**20)
    return {
        "runtime": arguments.runtime,
        "load average": round(os.getloadavg()[0], 2),
        "first token of the first picture ms": round(first[0]),
        "first token ms, median": round(statistics.median(first)),
        "decode tok/s, median": round(statistics.median(speed), 1),
        "memory after one picture MiB": round(memory[0]),
        f"memory after {len(memory)} MiB": round(memory[-1]),
    }


def _picture(path: Path, number: int) -> NDArray[np.uint8]:
    pixels = np.array(Image.open(path).convert("RGB").resize(SIZE))
    pixels[0, 0] = number
    return pixels


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="edgevlm-tiny")
    parser.add_argument("--runtime", default="onnx", help="such as onnx+llamacpp")
    parser.add_argument("--image", type=Path, default=Path("examples/photo.jpg"))
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()

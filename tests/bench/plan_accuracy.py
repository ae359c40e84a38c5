"""What `edgevlm device plan` foresees, against what is then measured.

    python tests/bench/plan_accuracy.py                      three models on two runtimes
    python tests/bench/plan_accuracy.py --models 256m --runtimes onnx --keep FOLDER

`256m` and `500m` have SmolVLM's sizes, random weights, a 4-bit decoder and a 16-bit vision
encoder; `tiny` is the built-in model. Each runs in a process of its own, in a context that
its last question fills. Memory is the peak of that whole process's resident set, as
`Reply.peak_rss_bytes` tells it: interpreter, libraries and those pages of mapped weights
that were touched. Speed is that of a question of 300 tokens with one tile of picture: the
quickest rounds and the quickest tenth of the steps, as other programs only make them slower.
Where they never rest, `--busy` compares one thread, in processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

RUNTIMES = ("onnx", "llamacpp")
NEW = 60


def main() -> None:
    options = _arguments()
    if options.child:
        print(json.dumps(measure(*options.child, options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            row(model, runtime, options, options.keep or Path(scratch))
            for model in options.models
            for runtime in options.runtimes
        ]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(rows)


def row(model: str, runtime: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    name, placement = "edgevlm-tiny", f"onnx+{runtime}" if runtime != "onnx" else runtime
    if model != "tiny":
        name, placement = str(make(folder, model, runtime, options.small)), runtime
    command = [sys.executable, __file__, "--child", name, placement]
    command += ["--context", str(options.context), "--rounds", str(options.rounds)]
    command += ["--busy"] if options.busy else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    measured = json.loads(done.stdout.splitlines()[-1])
    return {
        "model": model,
        "placement": placement,
        "measured": measured,
        "predicted": predict(name, placement, measured, options),
    }


def make(folder: Path, model: str, runtime: str, small: bool) -> Path:
    from full_size import convert, make_source

    target = folder / model / ("gguf" if runtime == "llamacpp" else runtime)
    if not target.is_dir():
        source = folder / model / "source"
        if not source.is_dir():
            make_source(source, model, small=small)
        convert(source, target, runtime)
    return target


def measure(name: str, placement: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load a model, and say what it takes: seconds and bytes."""
    from edgevlm import load_model, load_settings
    from edgevlm.devices.memory import peak_rss_bytes
    from edgevlm.engine.cancel import Cancel

    cancel, rng = Cancel(), np.random.default_rng(0)
    clock = time.process_time if options.busy else time.perf_counter
    context = options.context
    settings = load_settings(context_length=context, threads=1 if options.busy else None)
    with load_model(name, runtime=placement, settings=settings) as model:
        image = model.family.preprocess(rng.integers(0, 256, (240, 320, 3), np.uint8), "low")
        vision, prefill, steps = [], [], []

        def question(length: int) -> None:
            started = clock()
            seen = model.vision.encode(image, cancel)
            encoded = clock()
            sequence = model.language.new_context()
            ids = rng.integers(0, 400, length - len(seen))
            sequence.extend([seen, ids], cancel)
            times = [clock()]
            for _ in range(NEW):
                sequence.extend([np.array([5])], cancel)
                times.append(clock())
            sequence.close()
            vision.append(encoded - started)
            prefill.append(times[0] - encoded)
            steps.extend(np.diff(times))

        prompt = min(300, context // 2)
        for _ in range(options.rounds):
            question(prompt)
        quick = {
            "prompt": prompt,
            "vision_s": min(vision),
            "first_s": min(vision) + min(prefill),
            "tokens_per_s": 1 / float(np.quantile(steps, 0.1)),
        }
        question(context - NEW)
        return {**quick, "memory": peak_rss_bytes()}


def predict(
    name: str, placement: str, measured: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    from edgevlm import load_settings
    from edgevlm.devices.outlook import ThisMachine
    from edgevlm.devices.predict import predict_memory, predict_timing
    from edgevlm.devices.shape import Workload
    from edgevlm.engine.placement import Placement
    from edgevlm.models.shapes import sizes_of
    from edgevlm.models.store import Store

    settings = load_settings()
    sizes = sizes_of(name, Store(settings))
    where = Placement.parse(placement)
    weights = sizes.weights(where)
    assert sizes.shape is not None
    assert weights is not None
    work = Workload(measured["prompt"], 1, NEW, options.context)
    target = ThisMachine(sizes, settings.home, 1 if options.busy else None).target
    timing = predict_timing(sizes.shape, weights, where, work, target)
    memory = predict_memory(sizes.shape, weights, where, options.context)
    return {
        "memory": memory.total,
        "parts": memory.to_dict(),
        "vision_s": timing.vision,
        "first_s": timing.first_token,
        "tokens_per_s": timing.tokens_per_second,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    print("predicted / measured, and by how much the prediction is off")
    print(f"{'model':6}{'placement':15}{'memory MB':>18}{'':>6}{'first token s':>16}{'tok/s':>20}")
    for each in rows:
        predicted, measured = each["predicted"], each["measured"]
        cells = [f"{each['model']:6}{each['placement']:15}"]
        for key, scale, form in (
            ("memory", 1e-6, "8.0f"),
            ("first_s", 1, "6.2f"),
            ("tokens_per_s", 1, "6.1f"),
        ):
            off = predicted[key] / measured[key] - 1
            shown = f"{predicted[key] * scale:{form}} /{measured[key] * scale:{form}}"
            cells.append(f"{shown} {off:+5.0%}  ")
        print("".join(cells))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "256m", "500m"])
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a folder to make the models in, and keep them")
    parser.add_argument("--small", action="store_true", help="models of some megabytes: a test's")
    parser.add_argument("--busy", action="store_true", help="one thread, in processor time")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "PLACEMENT"), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

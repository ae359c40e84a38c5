"""What four bits cost on ONNX Runtime, by what the kernels round besides the weights.

    python tests/bench/four_bit.py                # SmolLM2-135M, fetched as the built-in model is
    python tests/bench/four_bit.py --gguf FILE --tokens 1000
    python tests/bench/four_bit.py --json

Each variant has the same 4-bit weights (Q4_1; output head Q8_0). Accuracy is against those
weights dequantised, in transformers: the same first choice, and KL divergence in nats. The
loops are bare ones of onnxruntime and take turns; a figure is a median over rounds, a ratio
the median over rounds of a variant's speed over that of the first, which rounds all activations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.append(str(Path(__file__).parents[1]))
from smollm2 import SmolLM2, fetch

from edgevlm.devices.threads import compute_threads
from edgevlm.models import tiny
from edgevlm.models.convert.measure import kl_divergence, top1_agreement
from edgevlm.models.onnx_export.skeleton import write_skeletons
from edgevlm.models.tiny_layout import SMOLLM2_135M as SHAPE
from edgevlm.runtimes.onnx_session import session_options

# name: (accuracy level of the products, that of the head)
VARIANTS: dict[str, tuple[int, int]] = {
    "all rounded to 8 bits": (4, 4),
    "likeliest logits exact": (1, 4),
    "all exact": (1, 1),
}


class Bare:
    """A decoder graph with its embeddings, run as directly as onnxruntime lets it be."""

    def __init__(self, folder: Path, threads: int) -> None:
        def load(name: str) -> Any:
            path = str(folder / f"{name}.onnx")
            return onnxruntime.InferenceSession(path, session_options(threads))

        self._embed, self._decoder = load("embed_tokens"), load("decoder_model_merged")

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """All logits [n, n_vocab] of ids [n], from an empty past."""
        rows: np.ndarray = self._decoder.run(["logits"], self._feeds(ids, 0) | _cache(0))[0][0]
        return rows

    def timed(self, prompt: np.ndarray, steps: int) -> tuple[float, float]:
        """Seconds of a prefill, and of the median step after it."""
        binding = self._decoder.io_binding()
        for name, array in _cache(len(prompt) + steps).items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)

        def run(ids: np.ndarray, length: int) -> float:
            started = time.perf_counter()
            for name, array in self._feeds(ids, length).items():
                binding.bind_cpu_input(name, array)
            binding.bind_output("logits")
            self._decoder.run_with_iobinding(binding)
            return time.perf_counter() - started

        first = run(prompt, 0)
        return first, statistics.median(run(prompt[:1], len(prompt) + n) for n in range(steps))

    def _feeds(self, ids: np.ndarray, length: int) -> dict[str, np.ndarray]:
        total = length + len(ids)
        return {
            "inputs_embeds": self._embed.run(None, {"input_ids": ids[None]})[0],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(length, total)[None],
        }


def _cache(length: int) -> dict[str, np.ndarray]:
    shape = (1, SHAPE.n_kv_heads, length, SHAPE.head_dim)
    return {
        f"past_key_values.{layer}.{part}": np.zeros(shape, np.float32)
        for layer in range(SHAPE.n_layers)
        for part in ("key", "value")
    }


def variant(model: SmolLM2, name: str, *, last_logits_only: bool) -> Path:
    """A folder with the variant's graphs; their weights are one file for all, by a link."""
    weights = model.folder / tiny.WEIGHTS_NAME
    if not weights.exists():
        model.folder.mkdir(parents=True, exist_ok=True)
        tiny.write_weights(model.file, SHAPE, {}, weights)
    folder = model.folder / f"{name}{' last' if last_logits_only else ''}"
    folder.mkdir()
    (folder / tiny.WEIGHTS_NAME).hardlink_to(weights)
    level, head = VARIANTS[name]
    write_skeletons(
        SHAPE,
        {},
        folder,
        accuracy_level=level,
        head_accuracy_level=head,
        last_logits_only=last_logits_only,
    )
    return folder


def measure(model: SmolLM2, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    ids = np.array(model.ids(max(options.tokens, options.prompt)))
    expected = model.exact_logits(ids[: options.tokens].tolist())
    result: dict[str, dict[str, float]] = {}
    for name in VARIANTS:
        bare = Bare(variant(model, name, last_logits_only=False), options.threads)
        found = bare.logits(ids[: options.tokens])
        kl = float(kl_divergence(expected, found).mean())
        result[name] = {"top1_agreement": top1_agreement(expected, found), "kl_divergence": kl}
    loops = {
        name: Bare(variant(model, name, last_logits_only=True), options.threads)
        for name in VARIANTS
    }
    prompt = ids[: options.prompt]
    for loop in loops.values():
        loop.timed(prompt, 2)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name, loop in loops.items():
            times[name].append(loop.timed(prompt, options.steps))
    first = times[next(iter(VARIANTS))]
    for name, rounds in times.items():
        for figure, column, count in (("prefill", 0, len(prompt)), ("decode", 1, 1)):
            seconds = statistics.median(each[column] for each in rounds)
            ratios = [a[column] / b[column] for a, b in zip(first, rounds, strict=True)]
            result[name][f"{figure}_tps"] = count / seconds
            result[name][f"{figure}_ratio"] = statistics.median(ratios)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="SmolLM2's file, instead of the store's")
    parser.add_argument("--tokens", type=int, default=1000, help="for the accuracy")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=compute_threads())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(SmolLM2(options.gguf or fetch(), Path(scratch) / "variants"), options)
    if options.json:
        print(json.dumps(result))
        return
    print(f"{'':26}{'same choice':>12}{'KL':>10}{'prefill tok/s':>16}{'decode tok/s':>16}")
    for name, row in result.items():
        speeds = [f"{row[f'{f}_tps']:.1f} ({row[f'{f}_ratio']:.2f})" for f in ("prefill", "decode")]
        accuracy = f"{row['top1_agreement']:>12.1%}{row['kl_divergence']:>10.1e}"
        print(f"{name:26}{accuracy}" + "".join(f"{speed:>16}" for speed in speeds))


if __name__ == "__main__":
    main()

"""Our decode loop against mlx-vlm's own `stream_generate`, on the same files in one run.

    python tests/bench/mlx_decode.py                    # small random weights, float32
    python tests/bench/mlx_decode.py --model FOLDER     # any MLX model: on a Mac, a real one
    python tests/bench/mlx_decode.py --json

mlx-vlm's loop is given ids and takes the most likely token; what it says is not turned into
text. Ours does what a session does: logprobs, text, stop strings and cancel. They take
turns; a round's figure is its median step, a ratio the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.generate import stream_generate
from mlx_vlm.utils import load_model
from onnx_decode import OURS, Loop, Timing, load_tokenizer, measure, summarize, timing

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.decode import decode
from edgevlm.engine.sampling import Sampling
from edgevlm.runtimes.mlx_decoder import MlxLanguageModel


def make_random(folder: Path) -> None:
    """Sizes at which a step on two slow cores takes milliseconds, as a real one does on a Mac."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from smolvlm_factory import Dims, make_random_model

    make_random_model(
        folder, dims=Dims(layers=12, hidden=256, intermediate=512, heads=8, kv_heads=2)
    )


def raw_loop(folder: Path) -> Loop:
    """`stream_generate` with a tokenizer that never stops and says nothing."""
    model = load_model(folder)
    silent = SimpleNamespace(
        reset=lambda: None,
        add_token=lambda *_, **__: None,
        finalize=lambda: None,
        last_segment="",
    )
    processor: Any = SimpleNamespace(
        stopping_criteria=lambda _: False, detokenizer=silent, thinking_budget_criteria=None
    )

    def run(prompt: np.ndarray, steps: int) -> Timing:
        ids: list[int] = []
        times = [time.perf_counter()]
        results = stream_generate(
            model, processor, "", input_ids=mx.array(prompt)[None], max_tokens=steps
        )
        for result in results:
            # The last result repeats the last token.
            if len(ids) < steps:
                ids.append(int(result.token))
                times.append(time.perf_counter())
        return timing(ids, times)

    return run


def our_loop(folder: Path) -> Loop:
    """The engine as a session uses it: logprobs, text, stop strings and cancel included."""
    weights = min(folder.glob("*.safetensors"))
    model = MlxLanguageModel(
        ModelFiles(folder.name, folder, {"weights": weights}), LoadOptions(threads=1)
    )
    tokenizer = load_tokenizer(folder, model.n_vocab)
    cancel = Cancel()

    def run(prompt: np.ndarray, steps: int) -> Timing:
        context = model.new_context()
        times = [time.perf_counter()]
        logits = context.extend([prompt], cancel)
        tokens = decode(
            logits,
            lambda chosen: context.extend([np.array([chosen])], cancel),
            tokenizer,
            Sampling(max_tokens=steps),
            stop_ids=frozenset(),
            cancel=cancel,
        )
        ids = []
        for token in tokens:
            ids.append(token.id)
            times.append(time.perf_counter())
        context.close()
        return timing(ids, times)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder with an MLX model")
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens")
    parser.add_argument("--steps", type=int, default=64, help="tokens to decode")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch)
        if options.model is None:
            make_random(folder)
        loops = {"mlx-vlm": raw_loop(folder), OURS: our_loop(folder)}
        prompt = np.random.default_rng(0).integers(0, 256, options.prompt)
        timings = measure(loops, prompt, options.steps, options.rounds)
    result = summarize(timings, options.prompt)
    if options.json:
        print(json.dumps({**result, "prompt": options.prompt, "steps": options.steps}, indent=2))
        return
    print(f"{'loop':12}{'prefill tok/s':>15}{'decode tok/s':>15}")
    for name, row in result["loops"].items():
        print(f"{name:12}{row['prefill_tps']:15.1f}{row['decode_tps']:15.1f}")
    ratios = {figure: each["mlx-vlm"] for figure, each in result["ratios"].items()}
    print(f"ours / mlx-vlm: prefill {ratios['prefill']:.3f}, decode {ratios['decode']:.3f}")
    print("both chose the same tokens" if result["same_tokens"] else "THE TOKENS DIFFER")


if __name__ == "__main__":
    main()

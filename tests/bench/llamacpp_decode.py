"""Our decode loop against a bare `llama_decode` loop, on the same file in one run.

    python tests/bench/llamacpp_decode.py                      # edgevlm-tiny's decoder
    python tests/bench/llamacpp_decode.py --model FILE.gguf
    python tests/bench/llamacpp_decode.py --json

The bare loop only takes the most likely token: no logprobs, no text, no stop strings, no
cancel. It has the same threads, batch, cache types and attention as ours. Loops take turns;
a round's figure is its median step, a ratio the median over rounds. Memory is what a process
of its own holds at its peak beyond what it held before the model, over the size of weights
and of the cache as it was made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx_decode import OURS, Loop, Timing, measure, summarize, timing
from tokenizers import Tokenizer

from edgevlm.devices.threads import compute_threads
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.decode import decode
from edgevlm.engine.sampling import Sampling
from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer
from edgevlm.runtimes.llamacpp_decoder import LlamaCppLanguageModel

BARE = "bare llama_decode"
BATCH = 128  # as ours


def load(path: Path, threads: int) -> LlamaCppLanguageModel:
    return LlamaCppLanguageModel(
        ModelFiles(path.stem, path.parent, {"decoder": path}), LoadOptions(threads)
    )


def our_loop(model: LlamaCppLanguageModel, tokenizer: Tokenizer) -> Loop:
    """The engine as a session uses it: logprobs, text, stop strings and cancel included."""
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


def bare_loop(model: LlamaCppLanguageModel, threads: int, capacity: int) -> Loop:
    """As short as llama.cpp lets it be, on the same weights."""
    import ctypes

    from edgevlm.runtimes.llamacpp_library import llama

    weights = model.opened()
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = capacity, BATCH, BATCH
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = int(not weights.is_f32)
    params.type_k = params.type_v = llama.GGML_TYPE_F32 if weights.is_f32 else llama.GGML_TYPE_F16

    def run(prompt: np.ndarray, steps: int) -> Timing:
        # Ours makes its context inside the measured time too.
        times = [time.perf_counter()]
        context = llama.llama_init_from_model(weights.pointer, params)

        def step(ids: np.ndarray) -> int:
            array = ids.astype(np.int32)
            for start in range(0, len(array), BATCH):
                part = array[start : start + BATCH]
                pointer = part.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
                llama.llama_decode(context, llama.llama_batch_get_one(pointer, len(part)))
            logits = llama.llama_get_logits_ith(context, -1)
            return int(np.ctypeslib.as_array(logits, (model.n_vocab,)).argmax())

        ids = [step(prompt)]
        times.append(time.perf_counter())
        while len(ids) < steps:
            ids.append(step(np.array(ids[-1:])))
            times.append(time.perf_counter())
        llama.llama_free(context)
        return timing(ids, times)

    return run


def peak_memory(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Of a process that loads, prefills and decodes once. Bytes, and their ratio."""
    code = f"{Path(__file__).resolve()} --model {path.resolve()} --peak"
    sizes = ["--prompt", str(options.prompt), "--steps", str(options.steps)]
    command = [sys.executable, *code.split(), *sizes, "--threads", str(options.threads)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def measure_peak(path: Path, options: argparse.Namespace) -> dict[str, float]:
    from edgevlm.runtimes.llamacpp_library import llama

    tokenizer = read_tokenizer(GgufFile(path))
    before = _status("VmRSS")
    _forget_peak()
    model = load(path, options.threads)
    capacities = []
    make = model.open_sequence

    def noting(capacity: int, batch: int) -> Any:
        capacities.append(capacity)
        return make(capacity, batch)

    model.open_sequence = noting  # type: ignore[method-assign]
    our_loop(model, tokenizer)(_prompt(options), options.steps)
    peak = _status("VmHWM") - before
    pointer = model.opened().pointer
    width = llama.llama_model_n_embd(pointer) // llama.llama_model_n_head(pointer)
    a_token = 2 * llama.llama_model_n_layer(pointer) * llama.llama_model_n_head_kv(pointer) * width
    kv = max(capacities) * a_token * (4 if model.opened().is_f32 else 2)
    wanted = path.stat().st_size + kv
    return {"peak": peak, "weights": path.stat().st_size, "kv": kv, "ratio": peak / wanted}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _prompt(options: argparse.Namespace) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, options.prompt)


def run(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    model = load(path, options.threads)
    tokenizer = read_tokenizer(GgufFile(path))
    loops = {
        BARE: bare_loop(model, options.threads, options.prompt + options.steps + 256),
        OURS: our_loop(model, tokenizer),
    }
    prompt = _prompt(options)
    timings = measure(loops, prompt, options.steps, options.rounds)
    setting = {"threads": options.threads, "prompt": options.prompt, "steps": options.steps}
    result = {**summarize(timings, options.prompt), **setting}
    if sys.platform == "linux":
        result["memory"] = peak_memory(path, options)
    return result


def _tiny() -> Path:
    from edgevlm.models.store import Store
    from edgevlm.settings import load_settings

    return Store(load_settings()).resolve("edgevlm-tiny", runtime="onnx+llamacpp").roles["decoder"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a decoder in GGUF")
    parser.add_argument("--prompt", type=int, default=300, help="prompt tokens")
    parser.add_argument("--steps", type=int, default=60, help="tokens to decode")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=compute_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", action="store_true", help="measure this process's memory only")
    options = parser.parse_args()
    path = options.model or _tiny()
    if options.peak:
        print(json.dumps(measure_peak(path, options)))
        return
    result = run(path, options)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'loop':24}{'prefill tok/s':>15}{'decode tok/s':>15}")
    for name, row in result["loops"].items():
        print(f"{name:24}{row['prefill_tps']:15.1f}{row['decode_tps']:15.1f}")
    ratios = {figure: of[BARE] for figure, of in result["ratios"].items()}
    print(f"ours / bare: prefill {ratios['prefill']:.3f}, decode {ratios['decode']:.3f}")
    print("both loops chose the same tokens" if result["same_tokens"] else "THE TOKENS DIFFER")
    if memory := result.get("memory"):
        mega = {name: memory[name] / 2**20 for name in ("peak", "weights", "kv")}
        print(
            f"peak {mega['peak']:.0f} MiB of {mega['weights']:.0f} weights"
            f" + {mega['kv']:.0f} cache: {memory['ratio']:.2f}"
        )


if __name__ == "__main__":
    # Before onnxruntime or numpy bring an OpenMP of theirs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    main()

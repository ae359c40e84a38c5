"""What adapters cost on a runtime: to load, to swap, to keep, and in every token.

    python tests/bench/adapter_swap.py                      edgevlm-tiny on llama.cpp
    python tests/bench/adapter_swap.py --runtime mlx        or onnx
    python tests/bench/adapter_swap.py --model FOLDER --runtime coreml --json

Two random adapters on all linear modules take turns. `call` is the swap alone; `felt` is the
call and what the next step takes longer than a step without a swap before it, as a runtime may
put off its work until then. "First" makes the runtime's own form of the adapter, "again"
finds it in the cache. The whole base is what a program without swaps would load anew, once the
files are in the system's cache: both parts, tokenizer and all. Bytes are what the process gained
for each of five adapters more.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from lora_factory import write_peft

from edgevlm import load_model
from edgevlm.adapters.peft import read_peft
from edgevlm.devices.memory import peak_rss_bytes
from edgevlm.devices.threads import compute_threads
from edgevlm.engine.adapter import Adapters, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Context, LanguageModel, LoadOptions, ModelFiles
from edgevlm.models.store import Store
from edgevlm.runtimes import get_runtime
from edgevlm.settings import load_settings

BUILT_IN = "edgevlm-tiny"
RUNTIMES = ("llamacpp", "mlx", "onnx", "coreml")
MORE = 5


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:32}{value:12,.2f}" if isinstance(value, float) else f"{name:32}{value:>12}")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    files = _files(arguments)
    options = LoadOptions(arguments.threads, context_length=1024, cache=folder / "cache")
    runtime = get_runtime(arguments.runtime)
    # Once for what a process does only once, such as loading libraries.
    runtime.load_language(files, options).close()
    base_ms, language = timed(lambda: runtime.load_language(files, options))
    packs = [
        write_peft(folder / str(seed), files.folder, rank=arguments.rank, seed=seed)
        for seed in range(2 + MORE)
    ]
    first_ms, one = timed(lambda: language.load_adapter(read_peft(packs[0], name="one")))
    again_ms, one = timed(lambda: language.load_adapter(read_peft(packs[0], name="one")))
    other = language.load_adapter(read_peft(packs[1], name="other"))
    calls, felt, grown = _swaps(language, [{one: 1.0}, {other: 1.0}], arguments)
    base_tps, adapter_tps = _speeds(language, {one: 1.0}, arguments)
    n_bytes, each = _cost(language, packs[2:])
    # Last, as what it frees would hide what an adapter takes.
    whole_ms = _reload(arguments)
    p50, p95 = _percentiles(calls)
    felt_p50, felt_p95 = _percentiles(felt)
    return {
        "runtime": arguments.runtime,
        "threads": arguments.threads,
        "load average": round(os.getloadavg()[0], 2),
        "adapter MB, float32": n_bytes / 1e6,
        "load of the base's decoder ms": base_ms,
        "load of the whole base ms": whole_ms,
        "load of an adapter, first ms": first_ms,
        "load of an adapter, again ms": again_ms,
        "swap call p50 ms": p50,
        "swap call p95 ms": p95,
        "swap felt p50 ms": felt_p50,
        "swap felt p95 ms": felt_p95,
        "whole load / swap call p50": whole_ms / max(p50, 1e-3),
        "whole load / swap felt p50": whole_ms / max(felt_p50, 1e-3),
        "memory after the swaps / before": grown,
        "resident adapter / its bytes": each / n_bytes,
        "decode base tok/s": base_tps,
        "decode with an adapter tok/s": adapter_tps,
        "decode with / without": adapter_tps / base_tps,
    }


def _swaps(
    language: LanguageModel, sets: list[Adapters], arguments: argparse.Namespace
) -> tuple[list[float], list[float], float]:
    """Milliseconds of each call, and as felt; memory after over before."""
    context = _filled(language, arguments.prompt)
    step = _step(context, arguments.prompt)
    calls, felt, before = [], [], 0
    # A heap takes a while until it has what comes and goes.
    warm_up = arguments.swaps // 4
    for index in range(warm_up + arguments.swaps):
        if index == warm_up:
            calls, felt, before = [], [], held_bytes()
        call_ms, _ = timed(lambda chosen=sets[index % 2]: context.use_adapters(chosen))
        next_ms, _ = timed(step)
        plain_ms, _ = timed(step)
        calls.append(call_ms)
        felt.append(call_ms + next_ms - plain_ms)
    after = held_bytes()
    context.close()
    return calls, felt, after / before


def _speeds(
    language: LanguageModel, adapters: Adapters, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Tokens per second of the base and with `adapters`, taking turns: medians of all steps."""
    contexts = [_filled(language, arguments.prompt) for _ in range(2)]
    contexts[1].use_adapters(adapters)
    steps = [_step(context, arguments.prompt) for context in contexts]
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(arguments.steps + 2):
        for step, taken in zip(steps, times, strict=True):
            took, _ = timed(step)
            if index >= 2:
                taken.append(took)
    for context in contexts:
        context.close()
    base, adapted = (1000 / statistics.median(taken) for taken in times)
    return base, adapted


def _cost(language: LanguageModel, packs: list[Path]) -> tuple[int, float]:
    """Bytes of an adapter's matrices, and those that each of several takes in memory."""

    def load(pack: Path) -> tuple[int, Any]:
        lora: Lora = read_peft(pack, name=pack.name)
        return lora.n_bytes, language.load_adapter(lora)

    before = held_bytes()
    loaded = [load(pack) for pack in packs]
    return loaded[0][0], (held_bytes() - before) / len(loaded)


def _filled(language: LanguageModel, n_ids: int) -> Context:
    context = language.new_context()
    context.extend([np.arange(n_ids) % language.n_vocab], Cancel())
    return context


def _step(context: Context, length: int) -> Callable[[], None]:
    """A token after the first `length`, whatever follows them."""

    def step() -> None:
        context.truncate(length)
        context.extend([np.array([7])], Cancel())

    return step


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    value = call()
    return (time.perf_counter() - started) * 1000, value


def _percentiles(times: list[float]) -> tuple[float, float]:
    return float(np.percentile(times, 50)), float(np.percentile(times, 95))


def held_bytes() -> int:
    """Bytes of this process in memory; its peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_rss_bytes()
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE


def _reload(arguments: argparse.Namespace) -> float:
    """Milliseconds that a program waits for the model, loaded once before: the median of five."""
    times = []
    for _ in range(5):
        took, model = timed(lambda: load_model(arguments.model, runtime=_placement(arguments)))
        model.close()
        times.append(took)
    return statistics.median(times)


def _files(arguments: argparse.Namespace) -> ModelFiles:
    return Store(load_settings()).resolve(arguments.model, runtime=_placement(arguments))


def _placement(arguments: argparse.Namespace) -> str:
    built_in = arguments.model == BUILT_IN and arguments.runtime != "onnx"
    return f"onnx+{arguments.runtime}" if built_in else str(arguments.runtime)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=BUILT_IN)
    parser.add_argument("--runtime", default="llamacpp", choices=RUNTIMES)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64, help="tokens before each step")
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=compute_threads())
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

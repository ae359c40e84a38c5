"""Our decode loop against bare onnxruntime loops, on the same files in one run.

    python tests/bench/onnx_decode.py                    # random weights of SmolLM2-135M's size
    python tests/bench/onnx_decode.py --model FOLDER     # any three-file model
    python tests/bench/onnx_decode.py --json

The bare loops only take the most likely token: no logprobs, no text, no stop strings, no
cancel. `numpy` feeds the keys and values back as arrays, `bound` hands them on as
OrtValues, in place where the graph can; both in a session with onnxruntime's own
defaults, `bound, our options` with our session options. Loops take turns; a round's
figure is its median step, a ratio the median over rounds, and the last line gives the
ratio to that bare loop which does best against ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer, decoders, models

from edgevlm.devices.threads import compute_threads
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.decode import decode
from edgevlm.engine.sampling import Sampling
from edgevlm.runtimes.onnx_decoder import OnnxLanguageModel
from edgevlm.runtimes.onnx_session import session_options

OURS = "EdgeVLM"


@dataclass(frozen=True)
class Timing:
    prefill_s: float
    step_s: float
    ids: tuple[int, ...]


Loop = Callable[[np.ndarray, int], Timing]


def timing(ids: list[int], times: list[float]) -> Timing:
    """`times` are those of the start and of every token, the first one after the prefill."""
    first, *steps = np.diff(times)
    return Timing(float(first), float(np.median(steps)), tuple(ids))


def find_files(folder: Path) -> ModelFiles:
    """The first file of each role, in the folder or its `onnx` folder."""
    patterns = {"embed_tokens": "embed_tokens*.onnx", "decoder": "decoder*.onnx"}
    roles = {}
    for role, pattern in patterns.items():
        found = sorted([*folder.glob(pattern), *folder.glob(f"onnx/{pattern}")])
        if not found:
            sys.exit(f"{folder} has no {pattern}")
        roles[role] = found[0]
    return ModelFiles(folder.name, folder, roles)


def make_random(folder: Path) -> None:
    """SmolLM2-135M's shape with random weights: 4-bit decoder, GroupQueryAttention."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from safetensors.numpy import load_file, save_file
    from smolvlm_factory import Dims, make_random_model

    from edgevlm.models.onnx_export import export_onnx

    n_vocab, hidden = 49_152, 576
    source = folder / "source"
    dims = Dims(layers=30, hidden=hidden, intermediate=1536, heads=9, kv_heads=3)
    make_random_model(source, dims=dims)
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["vocab_size"] = n_vocab
    (source / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    random = np.random.default_rng(0)
    for name in ("lm_head.weight", "model.text_model.embed_tokens.weight"):
        tensors[name] = random.standard_normal((n_vocab, hidden), np.float32) * hidden**-0.5
    save_file(tensors, source / "model.safetensors")
    export_onnx(source, folder, decoder_bits=4)
    (folder / "tokenizer.json").unlink(missing_ok=True)


def load_tokenizer(folder: Path, n_vocab: int) -> Tokenizer:
    """The model's own, or a stand-in with as many tokens."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    words = {"\u0120" + np.base_repr(i, 36).lower(): i for i in range(n_vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="\u01200"))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class Bare:
    """A greedy loop as short as onnxruntime lets it be."""

    def __init__(self, files: ModelFiles, session_options: Any, *, bound: bool) -> None:
        def session(role: str) -> Any:
            return onnxruntime.InferenceSession(str(files.roles[role]), session_options)

        self.embed, self.decoder = session("embed_tokens"), session("decoder")
        self.bound = bound
        inputs = {node.name: node for node in self.decoder.get_inputs()}
        self.extra = {name for name in inputs if not name.startswith("past_key_values")}
        self.past = [name for name in inputs if name.startswith("past_key_values")]
        self.present = [name.replace("past_key_values", "present") for name in self.past]
        self.sizes = {name: (inputs[name].shape[1], inputs[name].shape[3]) for name in self.past}
        half = inputs["inputs_embeds"].type == "tensor(float16)"
        self.dtype = np.float16 if half else np.float32
        metadata = self.decoder.get_modelmeta().custom_metadata_map
        self.in_place = bound and metadata.get("edgevlm.shared_kv") == "1"

    def __call__(self, prompt: np.ndarray, steps: int) -> Timing:
        step = self._numpy if not self.bound else self._chained
        if self.in_place:
            step = self._shared
        run = step(len(prompt) + steps)
        ids: list[int] = []
        times = [time.perf_counter()]
        ids.append(run(prompt, 0))
        times.append(time.perf_counter())
        for length in range(len(prompt), len(prompt) + steps - 1):
            ids.append(run(np.array(ids[-1:]), length))
            times.append(time.perf_counter())
        return timing(ids, times)

    def _feeds(self, ids: np.ndarray, length: int) -> dict[str, np.ndarray]:
        (embeddings,) = self.embed.run(None, {"input_ids": ids[None]})
        total = length + len(ids)
        feeds = {
            "inputs_embeds": embeddings.astype(self.dtype, copy=False),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(length, total)[None],
            "num_logits_to_keep": np.array(1),
        }
        return {name: array for name, array in feeds.items() if name in self.extra}

    def _empty(self, length: int) -> dict[str, np.ndarray]:
        return {
            name: np.zeros((1, heads, length, width), self.dtype)
            for name, (heads, width) in self.sizes.items()
        }

    def _numpy(self, capacity: int) -> Callable[[np.ndarray, int], int]:
        past = self._empty(0)

        def run(ids: np.ndarray, length: int) -> int:
            logits, *new = self.decoder.run(
                ["logits", *self.present], {**self._feeds(ids, length), **past}
            )
            past.update(zip(self.past, new, strict=True))
            return int(logits[0, -1].argmax())

        return run

    def _chained(self, capacity: int) -> Callable[[np.ndarray, int], int]:
        from_numpy = onnxruntime.OrtValue.ortvalue_from_numpy
        past = {name: from_numpy(array) for name, array in self._empty(0).items()}

        def run(ids: np.ndarray, length: int) -> int:
            feeds = {name: from_numpy(a) for name, a in self._feeds(ids, length).items()}
            logits, *new = self.decoder.run_with_ort_values(
                ["logits", *self.present], {**feeds, **past}
            )
            past.update(zip(self.past, new, strict=True))
            return int(logits.numpy()[0, -1].argmax())

        return run

    def _shared(self, capacity: int) -> Callable[[np.ndarray, int], int]:
        binding = self.decoder.io_binding()
        binding.bind_output("logits")
        for (name, array), present in zip(self._empty(capacity).items(), self.present, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(present, value)

        def run(ids: np.ndarray, length: int) -> int:
            for name, array in self._feeds(ids, length).items():
                binding.bind_cpu_input(name, array)
            binding.bind_output("logits")
            self.decoder.run_with_iobinding(binding)
            return int(binding.get_outputs_as_ortvaluevector()[0].numpy()[0, -1].argmax())

        return run


def our_loop(files: ModelFiles, threads: int) -> Loop:
    """The engine as a session uses it: logprobs, text, stop strings and cancel included."""
    model = OnnxLanguageModel(files, LoadOptions(threads))
    tokenizer = load_tokenizer(files.folder, model.n_vocab)
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


def measure(
    loops: dict[str, Loop], prompt: np.ndarray, steps: int, rounds: int
) -> dict[str, list[Timing]]:
    names = list(loops)
    for loop in loops.values():
        loop(prompt, 4)
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    for turn in range(rounds):
        # Another one begins in every round, so that none always follows a busy moment.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            # With onnxruntime's defaults, workers spin on for a while after their last run.
            time.sleep(0.1)
            timings[name].append(loops[name](prompt, steps))
    return timings


def summarize(timings: dict[str, list[Timing]], prompt_length: int) -> dict[str, Any]:
    rows = {
        name: {
            "prefill_tps": prompt_length / statistics.median(t.prefill_s for t in rounds),
            "decode_tps": 1 / statistics.median(t.step_s for t in rounds),
        }
        for name, rounds in timings.items()
    }
    ratios = {
        figure: {
            name: statistics.median(
                getattr(bare, seconds) / getattr(ours, seconds)
                for bare, ours in zip(rounds, timings[OURS], strict=True)
            )
            for name, rounds in timings.items()
            if name != OURS
        }
        for figure, seconds in (("prefill", "prefill_s"), ("decode", "step_s"))
    }
    same = len({t.ids for rounds in timings.values() for t in rounds}) == 1
    return {"loops": rows, "ratios": ratios, "same_tokens": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder with a three-file model")
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens")
    parser.add_argument("--steps", type=int, default=64, help="tokens to decode")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=compute_threads())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch)
        if options.model is None:
            make_random(folder)
        result = run(find_files(folder), options)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'loop':24}{'prefill tok/s':>15}{'decode tok/s':>15}")
    for name, row in result["loops"].items():
        print(f"{name:24}{row['prefill_tps']:15.1f}{row['decode_tps']:15.1f}")
    lowest = {figure: min(ratios.values()) for figure, ratios in result["ratios"].items()}
    print(f"ours / best bare: prefill {lowest['prefill']:.3f}, decode {lowest['decode']:.3f}")
    print("all loops chose the same tokens" if result["same_tokens"] else "THE TOKENS DIFFER")


def run(files: ModelFiles, options: argparse.Namespace) -> dict[str, Any]:
    defaults = onnxruntime.SessionOptions()
    defaults.intra_op_num_threads = options.threads
    loops: dict[str, Loop] = {
        "bare, numpy": Bare(files, defaults, bound=False),
        "bare, bound": Bare(files, defaults, bound=True),
        "bare, bound, our options": Bare(files, session_options(options.threads), bound=True),
        OURS: our_loop(files, options.threads),
    }
    prompt = np.random.default_rng(0).integers(0, 256, options.prompt)
    timings = measure(loops, prompt, options.steps, options.rounds)
    setting = {"threads": options.threads, "prompt": options.prompt, "steps": options.steps}
    return {**summarize(timings, options.prompt), **setting}


if __name__ == "__main__":
    main()

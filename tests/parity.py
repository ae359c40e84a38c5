"""The parity table: every runtime against transformers on CPU, and 4 bits against themselves.

    python tests/parity.py                      # everything, some minutes
    python tests/parity.py --runtimes onnx mlx
    python tests/parity.py --tokens 200         # of the 4-bit part; 0 leaves it out
    python tests/parity.py --json

The first table runs a small random-weight SmolVLM at each runtime's full precision: the largest
deviation of any logit from transformers, over greedy answers of 32 tokens, and whether all
tokens are the same; an adapter is one that PEFT has merged into the weights of transformers. The
second runs SmolLM2-135M's real weights on one 4-bit grid: how often the first choice is that of
the same weights dequantised, over so many tokens of a text that are read whatever the model would
say, and how far greedy answers are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from peft_reference import PeftReference
from smollm2 import VARIANTS, SmolLM2, fetch, forced_logits, greedy
from smolvlm_factory import make_random_model

from edgevlm.adapters.peft import read_peft
from edgevlm.devices.threads import compute_threads
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Prompt
from edgevlm.families import load_family
from edgevlm.families.base import Turn
from edgevlm.models.layouts import discover
from edgevlm.runtimes import get_runtime

STEPS = 32
# Of a seed whose answers pass no tie within the widest tolerance.
SEED = 5
CASES = {
    "text": "text only",
    "one image": "one image",
    "three images": "three images",
    "tiled image": "a tiled image",
    "follow-up": "a follow-up",
    "adapter": "one image",
}

# Of the decoder, in PEFT's words.
ALL_LINEAR = {
    "r": 8,
    "lora_alpha": 16,
    "target_modules": "all-linear",
    "exclude_modules": r".*(vision_model|connector)\..*",
}


@dataclass(frozen=True)
class Entry:
    """How a runtime takes part: at which precision, within what of a logit with a deviation
    of 3, and how its files are made of a folder with safetensors."""

    runtime: str
    precision: str
    text: float
    pictures: float
    make: Callable[[Path, Path], None]


def _onnx(source: Path, target: Path) -> None:
    from edgevlm.models.onnx_export import export_onnx

    export_onnx(source, target, decoder_bits=32, vision_bits=32)


def _llamacpp(source: Path, target: Path) -> None:
    from edgevlm.models.gguf_export import export_gguf

    export_gguf(source, target, quantize="f32", vision_bits=32)


def _mlx(source: Path, target: Path) -> None:
    from edgevlm.models.mlx_export import export_mlx

    export_mlx(source, target, bits=32, vision_bits=32)


def _coreml(source: Path, target: Path) -> None:
    from edgevlm.models.coreml_export import export_coreml

    export_coreml(source, target, bits=16, context_length=1024)


ENTRIES = (
    Entry("onnx", "fp32", 1e-3, 1e-3, _onnx),
    # ggml looks GELU up in a table of 16-bit numbers: pictures, not text.
    Entry("llamacpp", "fp32", 1e-3, 5e-3, _llamacpp),
    Entry("mlx", "fp32", 1e-3, 1e-3, _mlx),
    Entry("coreml", "fp16", 0.03, 0.03, _coreml),
)


@dataclass(frozen=True)
class Cell:
    """One runtime and one kind of prompt against transformers."""

    runtime: str
    precision: str
    case: str
    deviation: float
    tolerance: float
    same_tokens: bool

    @property
    def holds(self) -> bool:
        return self.same_tokens and self.deviation <= self.tolerance


def _tests_of_onnx() -> Any:
    """Where the conversations and the reference are, in a room of the tests."""
    for room in ("families", "runtimes"):
        path = str(Path(__file__).parent / room)
        if path not in sys.path:
            sys.path.append(path)
    import test_onnx_parity

    return test_onnx_parity


class Parts:
    """A model's family and both its parts on one runtime."""

    def __init__(self, folder: Path, runtime: str) -> None:
        paths = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        roles = discover(paths, runtime, runtime).roles
        files = ModelFiles(runtime, folder, {role: folder / path for role, path in roles.items()})
        options = LoadOptions(compute_threads())
        self.family = load_family(folder)
        with pytest.MonkeyPatch.context() as patch:
            if runtime == "coreml" and sys.platform != "darwin":
                from coreml_interpreter import install

                install(patch)
            self._language = get_runtime(runtime).load_language(files, options)
            self._vision = get_runtime(runtime).load_vision(files, options)

    def context(self) -> PrefixContext:
        return PrefixContext(self._language.new_context())

    def use_adapter(self, context: PrefixContext, folder: Path) -> None:
        lora = read_peft(folder, name="adapter")
        context.use_adapters({self._language.load_adapter(lora): 1.0})

    def prompt(self, name: str) -> Prompt:
        turns = []
        for role, parts in _tests_of_onnx().CONVERSATIONS[name]:
            content = [p if isinstance(p, str) else self.family.preprocess(p) for p in parts]
            turns.append(Turn(role, tuple(content)))  # type: ignore[arg-type]
        return self.family.render(turns)

    def answer(self, context: PrefixContext, prompt: Prompt) -> tuple[list[int], NDArray[Any]]:
        """Greedy ids [STEPS], and the logits [STEPS, n_vocab] before each."""
        logits, _ = context.prefill(
            prompt, lambda i: self._vision.encode(prompt.images[i], Cancel()), Cancel()
        )
        ids, rows = [int(logits.argmax())], [logits]
        while len(ids) < STEPS:
            rows.append(context.extend(ids[-1], Cancel()))
            ids.append(int(rows[-1].argmax()))
        return ids, np.stack(rows)


def full_precision(runtimes: Sequence[str], scratch: Path) -> Iterable[Cell]:
    """Every runtime asked for, and every kind of prompt."""
    source = make_random_model(scratch / "source", seed=SEED)
    with pytest.MonkeyPatch.context() as patch:
        # The processor of SmolVLM2 wants it for videos.
        patch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
        patch.setattr(_tests_of_onnx(), "STEPS", STEPS)
        reference = _tests_of_onnx().Reference(source)
        peft = PeftReference(source)
        lora = peft.save(scratch / "adapter", **ALL_LINEAR).folder
        merged = _tests_of_onnx().Reference(source, peft.merged({lora: 1.0}))
        for entry in ENTRIES:
            if entry.runtime in runtimes:
                target = scratch / entry.runtime
                entry.make(source, target)
                parts = Parts(target, entry.runtime)
                for case in CASES:
                    if case == "adapter":
                        yield _cell(entry, parts, case, merged, lora)
                    else:
                        yield _cell(entry, parts, case, reference)


def _cell(entry: Entry, parts: Parts, case: str, reference: Any, lora: Path | None = None) -> Cell:
    context = parts.context()
    if lora is not None:
        parts.use_adapter(context, lora)
    if case == "follow-up":
        parts.answer(context, parts.prompt(CASES["tiled image"]))
    prompt = parts.prompt(CASES[case])
    ids, logits = parts.answer(context, prompt)
    expected = reference.answer(CASES[case])
    deviation = float(np.abs(logits - expected.logits).max())
    tolerance = entry.pictures if prompt.images else entry.text
    same = ids == expected.ids
    context.close()
    return Cell(entry.runtime, entry.precision, case, deviation, tolerance, same)


# What is asked of SmolLM2 at 4 bits. ggml rounds activations to 8 bits on every CPU, whatever the
# file; so does the graph that ships with the built-in model, for speed.
LEAST_AGREEMENT = {
    "onnx": 0.99,
    "onnx, activations at 8 bits": 0.93,
    "llamacpp": 0.93,
    "mlx": 0.99,
}
QUESTIONS = (
    "List five things to check before a long bicycle tour.",
    "How do I learn to swim as an adult?",
    "What is the capital of France, and what is it known for?",
    "What does a compiler do?",
)
ANSWER = 24


@dataclass(frozen=True)
class FourBit:
    """`same_answer` counts for each of `QUESTIONS` how many tokens of a greedy answer of
    `ANSWER` are those of the weights dequantised, before the first that is not."""

    variant: str
    n_tokens: int
    top1_agreement: float
    least: float
    same_answer: tuple[int, ...]

    @property
    def holds(self) -> bool:
        return self.top1_agreement >= self.least


def four_bits(
    runtimes: Sequence[str],
    model: SmolLM2,
    n_tokens: int,
    questions: Sequence[str] = QUESTIONS,
) -> Iterable[FourBit]:
    """Every variant of the runtimes asked for."""
    ids = model.ids(n_tokens)
    expected = model.exact_logits(ids).argmax(axis=-1)
    prompts = [model.question(text) for text in questions]
    answers = [model.exact_answer(prompt, ANSWER) for prompt in prompts]
    for variant, (runtime, _) in VARIANTS.items():
        if runtime not in runtimes:
            continue
        with model.on(variant) as language:
            found = forced_logits(language, ids).argmax(axis=-1)
            same = tuple(
                _common(answer, greedy(language, prompt, ANSWER))
                for prompt, answer in zip(prompts, answers, strict=True)
            )
        agreement = float((found == expected).mean())
        yield FourBit(variant, n_tokens, agreement, LEAST_AGREEMENT[variant], same)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=True))
    return next((n for n, (a, b) in pairs if a != b), len(one))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = [entry.runtime for entry in ENTRIES]
    parser.add_argument("--runtimes", nargs="+", choices=known, default=known)
    parser.add_argument("--tokens", type=int, default=1000, help="of the 4-bit part")
    parser.add_argument("--gguf", type=Path, help="SmolLM2's file, instead of the store's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cells = list(full_precision(options.runtimes, Path(scratch)))
        if not options.json:
            _print_cells(cells)
        rows: list[FourBit] = []
        if options.tokens:
            model = SmolLM2(options.gguf or fetch(), Path(scratch) / "smollm2")
            for row in four_bits(options.runtimes, model, options.tokens):
                rows.append(row)
                if not options.json:
                    _print_four_bit(row, first=len(rows) == 1)
    if options.json:
        print(json.dumps({"cells": [*map(asdict, cells)], "four_bit": [*map(asdict, rows)]}))
    sys.exit(not all(each.holds for each in [*cells, *rows]))


def _print_cells(cells: Sequence[Cell]) -> None:
    print(f"Largest deviation of a logit from transformers; greedy tokens, {STEPS} of {STEPS}\n")
    print(f"{'':16}" + "".join(f"{case:>20}" for case in CASES) + f"{'within':>20}")
    for runtime in dict.fromkeys(cell.runtime for cell in cells):
        row = [cell for cell in cells if cell.runtime == runtime]
        within = " / ".join(f"{t:g}" for t in dict.fromkeys(cell.tolerance for cell in row))
        line = f"{runtime + ' ' + row[0].precision:16}"
        for cell in row:
            tokens = "same" if cell.same_tokens else "OTHER"
            line += f"{f'{cell.deviation:.1e} {tokens}':>18} {'✓' if cell.holds else '✗'}"
        print(line + f"{within:>20}")


def _print_four_bit(row: FourBit, *, first: bool) -> None:
    if first:
        print(f"\nSmolLM2-135M at 4 bits against its weights dequantised, {row.n_tokens} tokens")
        print(f"and {len(QUESTIONS)} greedy answers of {ANSWER}\n")
        print(f"{'':30}{'same first choice':>20}{'at least':>10}   same tokens of each answer")
    mark = "✓" if row.holds else "✗"
    answers = ", ".join(map(str, row.same_answer))
    print(f"{row.variant:30}{row.top1_agreement:>18.1%} {mark}{row.least:>10.0%}   {answers}")


if __name__ == "__main__":
    main()

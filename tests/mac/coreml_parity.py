"""Core ML's own predictions against the interpreter's and transformers', on a Mac.

    python tests/mac/coreml_parity.py [FOLDER] [--steps N]

prints a table: for each part the largest difference and the time of a call, and whether the
greedy tokens are the same; so too with a random adapter of rank 8, after which the base must be
what it was, bit for bit. FOLDER holds packages that `edgevlm model convert MODEL --runtime
coreml` wrote; they are compared with the interpreter. Without it a small random-weight model
is converted at 16 and at 4 bits, and also compared with transformers. Exit code 0 where all is
within tolerance, 1 where not, 4 where there is no Core ML.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

QUESTION = "What is in this picture?"
# Logits have a deviation of about 3, embeddings one of about 1; both sides round to 16 bits,
# each in its own places.
LOGITS, EMBEDDINGS = 0.1, 0.05


@dataclass(frozen=True)
class Row:
    model: str
    part: str
    against: str
    difference: float
    tolerance: float
    note: str

    @property
    def good(self) -> bool:
        return self.difference <= self.tolerance


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=32, help="tokens to decode (32)")
    options = parser.parse_args(arguments)
    from edgevlm.runtimes import get_runtime

    reason = get_runtime("coreml").unavailable()
    if reason is not None:
        print(f"This wants a Mac that runs Core ML: {reason}.", file=sys.stderr)
        return 4
    if options.folder is not None:
        rows = against_interpreter(options.folder, options.folder.name, options.steps)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            rows = random_model(Path(scratch), options.steps)
    print(table(rows))
    return 0 if all(row.good for row in rows) else 1


def random_model(scratch: Path, steps: int) -> list[Row]:
    from smolvlm_factory import make_random_model

    from edgevlm.models.coreml_export import export_coreml

    source = make_random_model(scratch / "source")
    rows = []
    for bits in (16, 4):
        folder = scratch / f"bits-{bits}"
        export_coreml(source, folder, bits=bits, context_length=1024)
        rows += against_interpreter(folder, f"random, {bits} bits", steps)
        if bits == 16:
            rows += against_transformers(source, folder, steps)
    return rows


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, the logits [steps, n_vocab] that chose them, and the median of a step."""

    ids: list[int]
    logits: Any
    token_ms: float = 0.0


class Parts:
    """Both parts of a folder, and what they answer to one picture and question: without an
    adapter, with one, and without it again on the same context."""

    def __init__(self, folder: Path, steps: int) -> None:
        from coreml_factory import coreml_files
        from lora_factory import random_lora

        from edgevlm.engine.contract import LoadOptions
        from edgevlm.engine.prefix import PrefixContext
        from edgevlm.families import load_family
        from edgevlm.runtimes.coreml_decoder import CoreMLLanguageModel
        from edgevlm.runtimes.coreml_vision import CoreMLVisionEncoder

        files, options = coreml_files(folder), LoadOptions(threads=1)
        self.family = load_family(folder)
        self.vision = CoreMLVisionEncoder(files, options)
        self.language = CoreMLLanguageModel(files, options)
        self.prompt = self._prompt()
        self.tile_ms = 0.0
        self.embeddings = self._encode()
        context = PrefixContext(self.language.new_context())
        self.base = self._answer(context, steps)
        adapter = self.language.load_adapter(random_lora(folder))
        context.use_adapters({adapter: 1.0})
        self.adapted = self._answer(context, steps)
        context.use_adapters({})
        self.again = self._answer(context, steps)

    def _prompt(self) -> Any:
        from edgevlm.families.base import Turn

        coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        picture = coarse.repeat(30, 0).repeat(30, 1)
        return self.family.render([Turn("user", (self.family.preprocess(picture), QUESTION))])

    def _encode(self) -> Any:
        from edgevlm.engine.cancel import Cancel

        (image,) = self.prompt.images
        self.vision.encode(image, Cancel())  # the first call is a warm-up
        started = time.perf_counter()
        rows = self.vision.encode(image, Cancel())
        self.tile_ms = (time.perf_counter() - started) * 1000 / len(image.pixel_values)
        return rows

    def _answer(self, context: Any, steps: int) -> Answer:
        from edgevlm.engine.cancel import Cancel

        logits, _ = context.prefill(self.prompt, lambda _: self.embeddings, Cancel())
        ids, rows, times = [int(logits.argmax())], [logits], []
        while len(ids) < steps:
            started = time.perf_counter()
            rows.append(context.extend(ids[-1], Cancel()))
            times.append((time.perf_counter() - started) * 1000)
            ids.append(int(rows[-1].argmax()))
        return Answer(ids, np.stack(rows), statistics.median(times or [0.0]))


def against_interpreter(folder: Path, name: str, steps: int) -> list[Row]:
    import pytest
    from coreml_interpreter import install

    real = Parts(folder, steps)
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        interpreted = Parts(folder, steps)
    changed = np.abs(real.again.logits - real.base.logits).max()
    return [
        vision_row(real, name, "interpreter", interpreted.embeddings),
        decoder_row("decoder", name, "interpreter", real.base, interpreted.base),
        decoder_row("with adapter", name, "interpreter", real.adapted, interpreted.adapted),
        Row(name, "adapter removed", "before it", float(changed), 0, ""),
    ]


def against_transformers(source: Path, folder: Path, steps: int) -> list[Row]:
    import torch
    from smolvlm_factory import load_reference

    real = Parts(folder, steps)
    model = load_reference(source)
    (image,) = real.prompt.images
    with torch.no_grad():
        pixels = torch.from_numpy(image.pixel_values)[None]
        features = torch.cat(list(model.model.get_image_features(pixels).pooler_output))
        rows = features.reshape(image.n_tokens, -1)
        embed = model.get_input_embeddings()
        pieces = [
            embed(torch.tensor(part))
            if isinstance(part, tuple)
            else rows[part.start : part.start + part.count]
            for part in [*real.prompt.parts, tuple(real.base.ids[:-1])]
        ]
        logits = model(inputs_embeds=torch.cat(pieces)[None]).logits[0, -steps:]
    name, found = "random, 16 bits", Answer(logits.argmax(-1).tolist(), logits.numpy())
    return [
        vision_row(real, name, "transformers", rows.numpy()),
        decoder_row("decoder", name, "transformers", real.base, found),
    ]


def vision_row(real: Parts, name: str, against: str, embeddings: Any) -> Row:
    difference = float(np.abs(real.embeddings - embeddings).max())
    return Row(name, "vision", against, difference, EMBEDDINGS, f"{real.tile_ms:.1f} ms a tile")


def decoder_row(part: str, name: str, against: str, real: Answer, other: Answer) -> Row:
    same = 0
    while same < len(real.ids) and real.ids[same] == other.ids[same]:
        same += 1
    # After another token all logits are of another text.
    upto = min(same + 1, len(real.ids))
    difference = float(np.abs(real.logits[:upto] - other.logits[:upto]).max())
    note = f"{same} of {len(real.ids)} tokens equal, {real.token_ms:.1f} ms a token"
    return Row(name, part, against, difference, LOGITS, note)


def table(rows: Sequence[Row]) -> str:
    lines = ["| model | part | against | largest difference | tolerance | |", "|" + "---|" * 6]
    lines += [
        f"| {r.model} | {r.part} | {r.against} | {r.difference:.4f}{'' if r.good else ' TOO FAR'}"
        f" | {r.tolerance} | {r.note} |"
        for r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

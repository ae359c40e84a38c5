"""Core ML parts of a model folder, run by the interpreter, and a loop that answers with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from coreml_interpreter import install
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, LoadOptions, ModelFiles
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Prompt
from edgevlm.families import load_family
from edgevlm.families.base import Turn
from edgevlm.models.coreml_export import export_coreml
from edgevlm.models.layouts import discover
from edgevlm.runtimes.coreml_decoder import CoreMLLanguageModel
from edgevlm.runtimes.coreml_vision import CoreMLVisionEncoder

OPTIONS = LoadOptions(threads=2)


def coreml_files(folder: Path) -> ModelFiles:
    paths = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    layout = discover(paths, "coreml", folder.name)
    roles = {role: folder / path for role, path in layout.roles.items()}
    return ModelFiles("random", folder, roles)


def convert(source: Path, target: Path, *, bits: int = 16) -> Path:
    export_coreml(source, target, bits=bits, context_length=1024)
    return target


class CoreMLParts:
    """Family and both parts of a converted folder."""

    def __init__(self, folder: Path) -> None:
        self.family = load_family(folder)
        with pytest.MonkeyPatch.context() as patch:
            install(patch)
            self.language = CoreMLLanguageModel(coreml_files(folder), OPTIONS)
            self.vision = CoreMLVisionEncoder(coreml_files(folder), OPTIONS)
        self.encoded = 0

    def context(self) -> PrefixContext:
        return PrefixContext(self.language.new_context())

    def prompt(self, conversation: Sequence[tuple[str, Sequence[object]]]) -> Prompt:
        turns = [
            Turn(role, tuple(p if isinstance(p, str) else self.family.preprocess(p) for p in parts))  # type: ignore[arg-type]
            for role, parts in conversation
        ]
        return self.family.render(turns)

    def answer(
        self, context: PrefixContext, prompt: Prompt, steps: int
    ) -> tuple[list[int], NDArray[np.float32], int]:
        """Decode greedily: ids, logits [steps, n_vocab], and how many positions were kept."""
        cancel = Cancel()

        def embed(index: int) -> Embeddings:
            self.encoded += 1
            return self.vision.encode(prompt.images[index], cancel)

        features = {index: embed(index) for index in sorted(context.needs(prompt))}
        logits, kept = context.prefill(prompt, features.__getitem__, cancel)
        ids, rows = [int(logits.argmax())], [logits]
        while len(ids) < steps:
            rows.append(context.extend(ids[-1], cancel))
            ids.append(int(rows[-1].argmax()))
        return ids, np.stack(rows), kept

"""Both parts of a model folder on a runtime, and a loop that answers with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, LanguageModel, VisionEncoder
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Prompt
from edgevlm.families.base import Family, Turn


class ModelParts:
    """`encoded` counts the pictures that were."""

    family: Family
    language: LanguageModel
    vision: VisionEncoder
    encoded = 0

    def context(self) -> PrefixContext:
        return PrefixContext(self.language.new_context())

    def prompt(
        self, conversation: Sequence[tuple[str, Sequence[str | NDArray[np.uint8]]]]
    ) -> Prompt:
        turns = []
        for role, parts in conversation:
            content = [p if isinstance(p, str) else self.family.preprocess(p) for p in parts]
            turns.append(Turn(role, tuple(content)))  # type: ignore[arg-type]
        return self.family.render(turns)

    def prefill(
        self, context: PrefixContext, prompt: Prompt, cancel: Cancel | None = None
    ) -> tuple[NDArray[np.float32], int]:
        """The last logits, and how many positions were kept."""
        cancel = cancel or Cancel()

        def embed(index: int) -> Embeddings:
            self.encoded += 1
            return self.vision.encode(prompt.images[index], cancel)

        features = {index: embed(index) for index in sorted(context.needs(prompt))}
        return context.prefill(prompt, features.__getitem__, cancel)

    def answer(
        self, context: PrefixContext, prompt: Prompt, steps: int
    ) -> tuple[list[int], NDArray[np.float32], int]:
        """Greedy ids [steps], the logits [steps, n_vocab] before each, positions kept."""
        logits, kept = self.prefill(context, prompt)
        ids, rows = [int(logits.argmax())], [logits]
        while len(ids) < steps:
            rows.append(context.extend(ids[-1], Cancel()))
            ids.append(int(rows[-1].argmax()))
        return ids, np.stack(rows), kept

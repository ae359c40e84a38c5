"""MLX parts of a model folder, and a loop that answers with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, LoadOptions, ModelFiles
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Prompt
from edgevlm.families import load_family
from edgevlm.families.base import Turn
from edgevlm.runtimes.mlx_decoder import MlxLanguageModel
from edgevlm.runtimes.mlx_vision import MlxVisionEncoder

OPTIONS = LoadOptions(threads=2)


def mlx_files(folder: Path, weights: str = "model.safetensors") -> ModelFiles:
    return ModelFiles("random", folder, {"weights": folder / weights})


@dataclass
class CountedCancel(Cancel):
    """Set itself when it was asked for the `n`th time: a cancel at a known place."""

    n: int
    asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        Cancel.__init__(self)

    @property
    def is_set(self) -> bool:
        self._ask()
        return super().is_set

    def check(self) -> None:
        self._ask()
        super().check()

    def _ask(self) -> None:
        self.asked += 1
        if self.asked == self.n:
            self.set()


class MlxParts:
    """Both parts of a folder on MLX, and its family."""

    def __init__(self, folder: Path) -> None:
        files = mlx_files(folder)
        self.family = load_family(folder)
        self.language = MlxLanguageModel(files, OPTIONS)
        self.vision = MlxVisionEncoder(files, OPTIONS)
        self.encoded = 0

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

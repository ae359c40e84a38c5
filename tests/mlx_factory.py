"""MLX parts of a model folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from model_parts import ModelParts

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.families import load_family
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


class MlxParts(ModelParts):
    """Both parts of a folder on MLX, and its family."""

    def __init__(self, folder: Path) -> None:
        files = mlx_files(folder)
        self.family = load_family(folder)
        self.language = MlxLanguageModel(files, OPTIONS)
        self.vision = MlxVisionEncoder(files, OPTIONS)

"""llama.cpp's parts of a model folder."""

from __future__ import annotations

from pathlib import Path

from model_parts import ModelParts

from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.families import load_family
from edgevlm.models.layouts import discover
from edgevlm.runtimes.llamacpp_decoder import LlamaCppLanguageModel
from edgevlm.runtimes.llamacpp_vision import LlamaCppVisionEncoder

OPTIONS = LoadOptions(threads=2)


def llamacpp_files(folder: Path) -> ModelFiles:
    layout = discover([path.name for path in folder.iterdir()], "llamacpp", folder.name)
    return ModelFiles("random", folder, {role: folder / p for role, p in layout.roles.items()})


class LlamaCppParts(ModelParts):
    """Both parts of a folder on llama.cpp, and its family."""

    def __init__(self, folder: Path) -> None:
        files = llamacpp_files(folder)
        self.family = load_family(folder)
        self.language = LlamaCppLanguageModel(files, OPTIONS)
        self.vision = LlamaCppVisionEncoder(files, OPTIONS)

"""Core ML parts of a model folder, run by the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
from coreml_interpreter import install
from model_parts import ModelParts

from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.families import load_family
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


class CoreMLParts(ModelParts):
    """Family and both parts of a converted folder."""

    def __init__(self, folder: Path) -> None:
        self.family = load_family(folder)
        with pytest.MonkeyPatch.context() as patch:
            install(patch)
            self.language = CoreMLLanguageModel(coreml_files(folder), OPTIONS)
            self.vision = CoreMLVisionEncoder(coreml_files(folder), OPTIONS)

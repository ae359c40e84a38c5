"""Model families: how each cuts its pictures and lays out its prompts.

`load_family` finds the family by the `model_type` of a folder's `config.json`, as the
files of every Hugging Face model carry it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.errors import NotSupported
from edgevlm.families.config_files import ConfigFile

if TYPE_CHECKING:
    from edgevlm.families.base import Family

# model_type: where its factory lives, imported when a model asks for it.
_FACTORIES = {
    "edgevlm_tiny": "edgevlm.families.tiny:TinyFamily.from_folder",
    "idefics3": "edgevlm.families.smolvlm:SmolVLM.from_folder",
    "smolvlm": "edgevlm.families.smolvlm:SmolVLM.from_folder",
}


def known_family(folder: Path) -> Family | None:
    """`load_family`, or None for a model that no family knows. Raises what else it does."""
    return load_family(folder) if is_known(folder) else None


def is_known(folder: Path) -> bool:
    """Whether a family here lays out this model's prompts. Raises ModelCorrupt."""
    config = ConfigFile.read_if_there(folder, "config.json")
    return config.fields.get("model_type") in _FACTORIES


def load_family(folder: Path) -> Family:
    """Read the family's files from a model folder.

    Raises ModelCorrupt where they are missing or inconsistent, NotSupported where no family
    knows the model type, and TemplateError where the chat template can't be compiled.
    """
    config = ConfigFile.read(folder, "config.json")
    model_type = config.fields.get("model_type")
    if not isinstance(model_type, str):
        raise config.corrupt("has no 'model_type'")
    if model_type not in _FACTORIES:
        raise NotSupported(
            f"Models of type {model_type!r} are not supported.",
            hint=f"Known types: {', '.join(sorted(_FACTORIES))}.",
        )
    module, _, path = _FACTORIES[model_type].partition(":")
    factory = importlib.import_module(module)
    for name in path.split("."):
        factory = getattr(factory, name)
    family: Family = factory(folder)  # type: ignore[operator]
    return family

"""What a model family knows: how its pictures are cut and how its prompts are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.engine.contract import ModelFiles
from edgevlm.engine.prompt import ImageInput, Prompt
from edgevlm.messages import Role

Detail: TypeAlias = Literal["low", "auto", "high"]


@dataclass(frozen=True, eq=False, slots=True)
class Turn:
    """One message ready for the template: text and prepared pictures in reading order."""

    role: Role
    content: tuple[str | ImageInput, ...]


class Family(Protocol):
    """One file of `edgevlm/families/` each; found by `model_type` of `config.json`."""

    name: str
    tokenizer: Tokenizer
    stop_ids: frozenset[int]

    def preprocess(self, pixels: NDArray[np.uint8], detail: Detail = "auto") -> ImageInput:
        """Prepare RGB uint8 [H, W, 3]. `low` never splits into tiles; `auto` does as the
        model's own configuration says."""

    def render(self, turns: Sequence[Turn]) -> Prompt:
        """Lay out the conversation, ending where the assistant's answer begins.

        Text never turns into special tokens: a user who types `<image>` gets these
        letters. Raises TemplateError.
        """


@runtime_checkable
class BringsFamily(Protocol):
    """A vision encoder whose runtime can prepare pictures and prompts by itself, of models
    for which there is no file here."""

    def own_family(self, files: ModelFiles) -> Family:
        """Raises ModelCorrupt, NotSupported, TemplateError."""

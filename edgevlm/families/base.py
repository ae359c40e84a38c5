"""What a model family knows: how its pictures are cut and how its prompts are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.engine.contract import ModelFiles
from edgevlm.engine.prompt import ImageInput, Prompt
from edgevlm.errors import UsageError
from edgevlm.messages import Role

Detail: TypeAlias = Literal["low", "auto", "high"]


@dataclass(frozen=True, eq=False, slots=True)
class Turn:
    """One message ready for the template: text and prepared pictures in reading order."""

    role: Role
    content: tuple[str | ImageInput, ...]


class VideoLayout(Protocol):
    """How a family shows a video: some of its frames as pictures, with words around them."""

    def sample(self, duration: float, fps: float, most: int) -> tuple[float, ...]:
        """Which moments to show, in seconds from the start and rising: `most` at the most,
        one at the least, of a video of `duration` seconds and `fps` frames a second."""

    def preprocess(self, pixels: NDArray[np.uint8]) -> ImageInput:
        """Prepare a frame, RGB uint8 [H, W, 3]."""

    def lay_out(
        self, frames: Sequence[ImageInput], times: Sequence[float], duration: float
    ) -> tuple[str | ImageInput, ...]:
        """The content of a turn that shows `frames`, each from its moment of `times`."""


class Family(Protocol):
    """One file of `edgevlm/families/` each; found by `model_type` of `config.json`.

    `video` is None where the model was not made to see videos.
    """

    name: str
    tokenizer: Tokenizer
    stop_ids: frozenset[int]

    @property
    def video(self) -> VideoLayout | None: ...

    def preprocess(
        self, pixels: NDArray[np.uint8], detail: Detail = "auto", budget: int | None = None
    ) -> ImageInput:
        """Prepare RGB uint8 [H, W, 3]. `low` never splits into tiles; `auto` does as the
        model's own configuration says. `budget` is the most tokens that the picture may
        cost: it gets fewer tiles then. Raises UsageError where none costs so little.
        """

    def render(self, turns: Sequence[Turn]) -> Prompt:
        """Lay out the conversation, ending where the assistant's answer begins.

        Text never turns into special tokens: a user who types `<image>` gets these
        letters. Raises TemplateError.
        """


def check_detail(detail: str) -> Detail:
    """Raise UsageError for what is no detail."""
    for known in get_args(Detail):
        if detail == known:
            return cast(Detail, known)
    hint = f"Details: {', '.join(get_args(Detail))}."
    raise UsageError(f"There is no detail {detail!r}.", hint=hint)


def check_budget(budget: int | None, least: int) -> None:
    """Raise UsageError where a picture costs `least` tokens or more, above its budget."""
    if budget is not None and budget < least:
        raise UsageError(
            f"A picture costs this model at least {least} tokens, more than {budget}.",
            hint=f"Allow {least} tokens a picture, or more.",
        )


@runtime_checkable
class BringsFamily(Protocol):
    """A vision encoder whose runtime can prepare pictures and prompts by itself, of models
    for which there is no file here."""

    def own_family(self, files: ModelFiles) -> Family:
        """Raises ModelCorrupt, NotSupported, TemplateError."""

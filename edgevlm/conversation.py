"""What was said in a conversation, as each of those that may answer needs it.

The local model gets turns with prepared pictures, a cloud model messages with pixels, and the
cache what tells one picture from another; each is made when it first is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.cache import Picture, Said
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import UsageError
from edgevlm.families.base import Detail, Turn
from edgevlm.messages import Message, Role
from edgevlm.routing.picture import PictureStats, picture_stats

Pixels: TypeAlias = NDArray[np.uint8]
Prepare: TypeAlias = Callable[[Pixels, Detail, "int | None"], ImageInput]


class Shown:
    """A picture, RGB uint8 [H, W, 3]: `prepare` is the model's family's."""

    def __init__(
        self, pixels: Pixels, detail: Detail, budget: int | None, prepare: Prepare
    ) -> None:
        self.pixels: Pixels | None = pixels
        self._detail = detail
        self._budget = budget
        self._prepare = prepare

    @cached_property
    def image(self) -> ImageInput:
        """Raises what the family's `preprocess` does."""
        assert self.pixels is not None, "prepared before its pixels went"
        return self._prepare(self.pixels, self._detail, self._budget)

    @cached_property
    def stats(self) -> PictureStats:
        assert self.pixels is not None, "measured before its pixels went"
        return picture_stats(self.pixels)

    @cached_property
    def exact(self) -> Picture:
        assert self.pixels is not None, "hashed before its pixels went"
        return Picture.of(self.pixels, self._detail, self._budget)

    def near(self) -> Picture:
        """With what tells whether another can't be told from it."""
        if self.pixels is None:
            return self.exact
        return Picture.of(self.pixels, self._detail, self._budget, near=True)

    def let_go(self, *, hashed: bool) -> None:
        """Keep what was made of the pixels, and not them: they may be 100 MB. `hashed` is
        whether a cache will ask for their hash, which takes 100 ms of twelve megapixels."""
        _ = self.image
        if hashed:
            _ = self.exact
        self.pixels = None


Part: TypeAlias = str | Shown | ImageInput


@dataclass(frozen=True, slots=True)
class Spoken:
    """One turn. A bare `ImageInput` is a frame of a video."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def shown(self) -> list[Shown]:
        return [part for part in self.parts if isinstance(part, Shown)]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    def turn(self) -> Turn:
        """For the model's family."""
        return Turn(self.role, tuple(p.image if isinstance(p, Shown) else p for p in self.parts))

    def message(self) -> Message:
        """For a cloud model. Raises UsageError for what can't be sent."""
        if any(isinstance(part, ImageInput) for part in self.parts):
            raise UsageError(
                "A video is not sent to the cloud.", hint="Send pictures of it, or stay local."
            )
        pixels = tuple(shown.pixels for shown in self.shown)
        if any(each is None for each in pixels):
            raise UsageError(
                "The pictures of before are no longer here to be sent.", hint="Show them again."
            )
        return Message(self.role, self.text, pixels)

    def said(self, *, near: bool) -> Said:
        """For the cache; `near` where pictures that can't be told apart count as one."""
        return Said(self.role, tuple(_said(part, near) for part in self.parts))


def _said(part: Part, near: bool) -> str | Picture:
    if isinstance(part, str):
        return part
    if isinstance(part, ImageInput):
        return Picture.prepared(part)
    return part.near() if near else part.exact


def turns_of(conversation: Sequence[Spoken]) -> list[Turn]:
    return [spoken.turn() for spoken in conversation]

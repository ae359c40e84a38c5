"""What can be known before a question is answered: that no answer here would be worth much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# Shortest side in pixels below which nobody can tell what a picture shows; icons have 16.
_TINY = 16
# Variance of the Laplacian below which no edge is sharp enough for letters or small things.
_BLURRED = 8.0
# How often a picture is made smaller before letters of ordinary size are lost.
_SHRUNK = 3.0
_FINE = frozenset({"read", "count"})


class Looked(Protocol):
    """Width and height of a picture in pixels, and the variance of its Laplacian (levels of 0
    to 255, on a copy of at most 160 pixels a side)."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def sharpness(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """Why not. `elsewhere` says that a larger model may do better, and not that the picture
    shows too little for anyone."""

    reason: str
    elsewhere: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """What a model is known not to do: `beyond` are the types of questions that it gets wrong,
    `sees` the pixels of a side that its vision encoder takes (None where it takes tiles)."""

    beyond: frozenset[str] = frozenset()
    sees: int | None = None

    def look(self, question_type: str, pictures: Sequence[Looked]) -> Finding | None:
        """None where there is nothing to be said against answering here."""
        for picture in pictures:
            size = f"{picture.width} x {picture.height} pixels"
            if min(picture.width, picture.height) < _TINY:
                return Finding(f"the picture has {size}, too few to tell anything", False)
            if question_type in _FINE and picture.sharpness < _BLURRED:
                return Finding("the picture is too blurred for this question", False)
        if question_type in self.beyond:
            return Finding(f"questions of this type ({question_type}) are beyond this model", True)
        for picture in pictures:
            longest = max(picture.width, picture.height)
            if question_type == "read" and self.sees and longest > _SHRUNK * self.sees:
                return Finding(
                    f"this model sees the picture at {self.sees} of {longest} pixels, too small"
                    " to read",
                    True,
                )
        return None

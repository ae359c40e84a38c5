"""Pictures made smaller, for models whose pictures cost the fewer tokens the smaller they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.families.base import check_budget

# Below so many pixels on its longer side no picture gets fewer tokens.
_SMALLEST = 16


class Prepared(Protocol):
    """A picture that a runtime has prepared, and the tokens that it costs."""

    @property
    def n_tokens(self) -> int: ...


P = TypeVar("P", bound=Prepared)


def prepare_within(
    rgb: NDArray[np.uint8],
    prepare: Callable[[NDArray[np.uint8]], P],
    *,
    longest: int | None = None,
    budget: int | None = None,
) -> P:
    """`prepare` RGB uint8 [H, W, 3], made smaller first where it is longer than `longest`
    pixels or costs more than `budget` tokens.

    Raises UsageError where no size costs so little, and what `prepare` raises.
    """
    side = max(rgb.shape[:2])
    scale = min(1.0, longest / side) if longest else 1.0
    picture = prepare(_scaled(rgb, scale))
    while budget is not None and picture.n_tokens > budget:
        if round(side * scale) <= _SMALLEST:
            check_budget(budget, picture.n_tokens)
        # Tokens go with the area, in steps.
        scale *= min(0.9, (budget / picture.n_tokens) ** 0.5)
        scale = max(scale, _SMALLEST / side)
        picture = prepare(_scaled(rgb, scale))
    return picture


def _scaled(rgb: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    if scale >= 1:
        return rgb
    height, width, _ = rgb.shape
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smaller: NDArray[Any] = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))
    return smaller

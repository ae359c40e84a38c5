"""Where the patches of a SigLIP tower are in its square position table.

The position of a patch is its fraction of the picture's real part, mapped to the table
(NaViT, arXiv:2307.06304, as in Idefics2).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def position_boundaries(n_per_side: int) -> NDArray[np.float32]:
    """Where fractions of a side pass from one row of the position table to the next.

    Multiples of 1 / n, rounded once. `torch.arange`, which transformers uses, may
    differ in the last bit; both send every fraction to the same row.
    """
    step = 1 / n_per_side
    count = math.ceil((1.0 - step) / step)
    return (step + np.arange(count) * step).astype(np.float32)


def full_tile_rows(n_per_side: int) -> NDArray[np.int64]:
    """The row of the position table of each patch of a whole tile, int64 [n_per_side ** 2].

    In transformers' float32 steps, since there a fraction on a boundary may fall to either side.
    """
    step = np.float32(1) / np.float32(n_per_side)
    fractions = np.minimum(np.arange(n_per_side, dtype=np.float32) * step, np.float32(1 - 1e-6))
    side = (fractions[:, None] >= position_boundaries(n_per_side)).sum(1, dtype=np.int64)
    rows: NDArray[np.int64] = (side[:, None] * n_per_side + side).reshape(-1)
    return rows

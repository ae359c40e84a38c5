"""Weights on a grid of few bits, in the layouts of ONNX Runtime's operators.

Blocks of `BLOCK` weights along the input features share a scale:
`weight = scale * (level - zero_point)`, the zero point being the middle of the
range. `MatMulNBits` packs 4-bit levels in pairs, the earlier in the low half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 32


def quantize_blocks(
    weight: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round `weight` float32 [N, K] to the symmetric grid of each block.

    Returns levels uint8 [N, K / BLOCK, BLOCK], not packed, and scales float32
    [N, K / BLOCK]. The weight of greatest magnitude in a block is met exactly.
    """
    n, k = weight.shape
    if k % BLOCK:
        raise ValueError(f"{k} input features are no multiple of {BLOCK}")
    middle = 1 << (bits - 1)
    blocks = np.ascontiguousarray(weight, np.float32).reshape(n, k // BLOCK, BLOCK)
    extremes = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    scales = extremes[..., 0] / np.float32(-middle)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    levels = np.rint(blocks * inverse[..., None]) + middle
    return np.clip(levels, 0, 2 * middle - 1).astype(np.uint8), scales


def pack_levels(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Levels uint8 [N, blocks, BLOCK] as `MatMulNBits` wants them, [N, blocks, bytes]."""
    if bits == 8:
        return levels
    if bits != 4:
        raise ValueError(f"no layout for {bits} bits")
    return levels[..., 0::2] | (levels[..., 1::2] << np.uint8(4))


def dequantize_blocks(
    levels: NDArray[np.uint8], scales: NDArray[np.float32], bits: int
) -> NDArray[np.float32]:
    """What the grid stands for: float32 [N, K]."""
    centred = levels.astype(np.float32) - np.float32(1 << (bits - 1))
    return (centred * scales[..., None]).reshape(levels.shape[0], -1)

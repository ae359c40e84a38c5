"""Matrix products and embedding tables at 32, 8 and 4 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.models.onnx_export.graph import MICROSOFT, Graph
from edgevlm.models.onnx_export.quantize import BLOCK, pack_levels, quantize_blocks

# Activations rounded to int8 per block: the fast kernels on AVX-512 VNNI, AVX2 and NEON.
INT8_ACTIVATIONS = 4


def matmul_nbits(
    graph: Graph,
    x: str,
    levels: str,
    scales: str,
    *,
    in_features: int,
    out_features: int,
    bits: int,
    accuracy_level: int = INT8_ACTIVATIONS,
) -> str:
    """`x [..., K] @ W.T` for W [N, K] on the symmetric grid of `bits` bits."""
    return graph.node(
        "MatMulNBits",
        x,
        levels,
        scales,
        domain=MICROSOFT,
        K=in_features,
        N=out_features,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=accuracy_level,
    )


def linear(
    graph: Graph,
    x: str,
    name: str,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
    bits: int = 32,
) -> str:
    """`x @ weight.T + bias`, weight float32 [N, K], stored at `bits` bits.

    16 bits are stored as float16 and widened when the file is loaded; widths that
    are no multiple of a block stay at 16 bits.
    """
    n, k = weight.shape
    if bits < 16 and k % BLOCK:
        bits = 16
    if bits >= 16:
        stored = float_weight(graph, f"{name}.weight", weight.T, bits)
        y = graph.node("MatMul", x, stored)
    else:
        levels, scales = quantize_blocks(weight, bits)
        y = matmul_nbits(
            graph,
            x,
            graph.weight(f"{name}.weight.levels", pack_levels(levels, bits)),
            graph.weight(f"{name}.weight.scales", scales),
            in_features=k,
            out_features=n,
            bits=bits,
        )
    if bias is None:
        return y
    return graph.node("Add", y, graph.weight(f"{name}.bias", bias))


def float_weight(graph: Graph, name: str, array: NDArray[np.float32], bits: int) -> str:
    """A float weight; ONNX Runtime folds the widening of float16 once, at load."""
    if bits >= 32:
        return graph.weight(name, array)
    stored = graph.weight(name, array.astype(np.float16))
    return graph.node("Cast", stored, to=1)


def embedding(graph: Graph, ids: str, name: str, table: NDArray[np.float32], bits: int) -> str:
    """Rows `ids` int64 [B, S] of `table` float32 [V, D]: float32 [B, S, D]."""
    width = table.shape[1]
    if bits >= 16 or width % BLOCK:
        return graph.node("Gather", float_weight(graph, name, table, bits), ids)
    levels, scales = quantize_blocks(table, 8)
    return embedding_int8(
        graph,
        ids,
        graph.weight(f"{name}.levels", levels),
        graph.weight(f"{name}.scales", scales[..., None]),
        width,
    )


def embedding_int8(graph: Graph, ids: str, levels: str, scales: str, width: int) -> str:
    """Gather rows of 8-bit levels [V, blocks, BLOCK] with scales [V, blocks, 1], then widen them.

    The levels have the layout of `MatMulNBits`, so that tied tables share their bytes.
    """
    rows = graph.node("Cast", graph.node("Gather", levels, ids), to=1)
    centred = graph.node("Sub", rows, graph.constant(128, np.float32))
    scaled = graph.node("Mul", centred, graph.node("Gather", scales, ids))
    return graph.node("Reshape", scaled, graph.constant([0, 0, width]))

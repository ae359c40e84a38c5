"""Matrix products and embedding tables at 32, 8 and 4 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.models.onnx_export.graph import MICROSOFT, Graph
from edgevlm.models.onnx_export.quantize import BLOCK, pack_levels, quantize_blocks

# Activations rounded to int8 per block: the fast kernels on AVX-512 VNNI, AVX2 and NEON. Of
# SmolLM2-135M at 4 bits they move 3% of the first choices, wherever they are used: rounding
# the inputs of but one group of products, or of the head, moves more than 1%.
INT8_ACTIVATIONS = 4
# Activations as they are. ONNX Runtime has kernels for it at 4 bits (about 0.75 of the decoding
# speed, prefill as fast); weights of 8 bits are widened whole at every call, 10 times slower.
FLOAT_ACTIVATIONS = 1
# As many first choices of an 8-bit head are computed again from activations as they are.
_EXACT_CHOICES = 64


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
    accuracy_level: int = INT8_ACTIVATIONS,
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
            accuracy_level=accuracy_level if bits == 4 else INT8_ACTIVATIONS,
        )
    if bias is None:
        return y
    return graph.node("Add", y, graph.weight(f"{name}.bias", bias))


def low_rank(graph: Graph, x: str, y: str, name: str, in_features: int, out_features: int) -> str:
    """`y + (x @ a) @ b`, for inputs `lora.{name}.a` [K, rank] and `lora.{name}.b` [rank, N].

    Left out, they have rank 0 and change no bit. Three nodes of rank 0 for each of a layer's
    four groups took nothing that could be measured (135M at 4 bits); a pair for each of the
    seven modules took 3.5% of a decoding step.
    """
    a, b = f"lora.{name}.a", f"lora.{name}.b"
    rank = f"lora.{name}.rank"
    graph.optional_input(a, np.zeros((in_features, 0), np.float32), [in_features, rank])
    graph.optional_input(b, np.zeros((0, out_features), np.float32), [rank, out_features])
    return graph.node("Add", y, graph.node("MatMul", graph.node("MatMul", x, a), b))


def head_int8(
    graph: Graph, x: str, levels: str, scales: str, *, width: int, n_vocab: int, exact: bool
) -> str:
    """Logits of `x [B, S, width]` for 8-bit levels [n_vocab, blocks, BLOCK] with scales
    [n_vocab, blocks]; `exact` takes the rounding of activations out of the likeliest ones.

    The others keep an error of about a tenth of a nat, where it decides nothing.
    """
    logits = matmul_nbits(graph, x, levels, scales, in_features=width, out_features=n_vocab, bits=8)
    if not exact:
        return logits
    count = min(_EXACT_CHOICES, n_vocab)
    _, choices = graph.nodes(
        "TopK", logits, graph.constant([count]), n_outputs=2, axis=-1, sorted=0
    )
    rows = graph.node("Cast", graph.node("Gather", levels, choices), to=1)
    rows = graph.node("Sub", rows, graph.constant(128, np.float32))
    scale = graph.node("Unsqueeze", graph.node("Gather", scales, choices), graph.constant([-1]))
    rows = graph.node("Mul", rows, scale)
    rows = graph.node("Reshape", rows, graph.constant([0, 0, count, width]))
    column = graph.node("Unsqueeze", x, graph.constant([-1]))
    found = graph.node("Squeeze", graph.node("MatMul", rows, column), graph.constant([-1]))
    return graph.node("ScatterElements", logits, choices, found, axis=-1)


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

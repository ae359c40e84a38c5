"""The grid of few bits, and that ONNX Runtime reads our layout of it as we mean it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgevlm.models.onnx_export.graph import Graph
from edgevlm.models.onnx_export.linear import embedding_int8, matmul_nbits
from edgevlm.models.onnx_export.quantize import dequantize_blocks, pack_levels, quantize_blocks

N, K = 48, 96


@pytest.fixture
def weight() -> Any:
    weight = np.random.default_rng(3).standard_normal((N, K)).astype(np.float32)
    weight[0, :32] = 0
    return weight


@pytest.mark.parametrize("bits", [4, 8])
def test_rounds_to_the_nearest_level_and_only_once(weight: Any, bits: int) -> None:
    levels, scales = quantize_blocks(weight, bits)
    rounded = dequantize_blocks(levels, scales, bits)
    # The level beyond the middle on the far side of the extreme does not exist.
    bound = np.repeat(np.abs(scales), 32, axis=1) * 1.001
    beyond = np.repeat(scales * (2 ** (bits - 1) - 1), 32, axis=1)
    inside = np.sign(weight) != np.sign(beyond)
    inside |= np.abs(weight) <= np.abs(beyond)
    assert (np.abs(rounded - weight) <= bound / 2)[inside].all()
    assert (np.abs(rounded - weight) <= bound).all()
    again, same_scales = quantize_blocks(rounded, bits)
    np.testing.assert_array_equal(again, levels)
    np.testing.assert_array_equal(same_scales, scales)


@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_nbits_multiplies_what_the_grid_stands_for(
    weight: Any, bits: int, tmp_path: Path
) -> None:
    levels, scales = quantize_blocks(weight, bits)
    graph = Graph("product")
    y = matmul_nbits(
        graph,
        graph.input("x", np.float32, ["n", K]),
        graph.weight("levels", pack_levels(levels, bits)),
        graph.weight("scales", scales),
        in_features=K,
        out_features=N,
        bits=bits,
        accuracy_level=1,
    )
    graph.output(y, "y", np.float32, ["n", N])
    graph.save(tmp_path / "product.onnx", {})
    x = np.random.default_rng(4).standard_normal((5, K)).astype(np.float32)
    (found,) = ort.InferenceSession(tmp_path / "product.onnx").run(None, {"x": x})
    expected = x @ dequantize_blocks(levels, scales, bits).T
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_embedding_rows_share_the_layout(weight: Any, tmp_path: Path) -> None:
    levels, scales = quantize_blocks(weight, 8)
    graph = Graph("rows")
    rows = embedding_int8(
        graph,
        graph.input("ids", np.int64, ["b", "s"]),
        graph.weight("levels", pack_levels(levels, 8)),
        graph.weight("scales", scales[..., None]),
        K,
    )
    graph.output(rows, "rows", np.float32, ["b", "s", K])
    graph.save(tmp_path / "rows.onnx", {})
    ids = np.array([[3, 0, 47], [1, 1, 2]])
    (found,) = ort.InferenceSession(tmp_path / "rows.onnx").run(None, {"ids": ids})
    np.testing.assert_array_equal(found, dequantize_blocks(levels, scales, 8)[ids])


def test_refuses_widths_that_make_no_blocks() -> None:
    with pytest.raises(ValueError, match="33"):
        quantize_blocks(np.zeros((2, 33), np.float32), 4)
    with pytest.raises(ValueError, match="3 bits"):
        pack_levels(np.zeros((1, 1, 32), np.uint8), 3)

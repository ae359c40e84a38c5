"""Four bits with activations as they are: the first choices of the weights dequantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from smolvlm_factory import load_reference

from edgevlm.models.onnx_export import export_onnx
from edgevlm.models.onnx_export.graph import Graph
from edgevlm.models.onnx_export.linear import head_int8
from edgevlm.models.onnx_export.quantize import dequantize_blocks, quantize_blocks

N_TOKENS = 200


@torch.no_grad()
def dequantised_logits(source: Path, ids: Any) -> Any:
    """transformers with every product's weights on their grid: 4 bits, table and head 8."""
    model = load_reference(source)
    for name, module in model.model.text_model.named_modules():
        bits = 8 if name == "embed_tokens" else 4
        if name.endswith(("_proj", "embed_tokens")):
            _put_on_grid(module.weight, bits)
    _put_on_grid(model.lm_head.weight, 8)
    return model(input_ids=torch.from_numpy(ids)).logits[0].numpy()


def _put_on_grid(weight: Any, bits: int) -> None:
    levels, scales = quantize_blocks(weight.numpy(), bits)
    weight.copy_(torch.from_numpy(dequantize_blocks(levels, scales, bits)))


def exported_logits(source: Path, folder: Path, ids: Any, *, exact: bool) -> Any:
    export_onnx(source, folder, decoder_bits=4, exact=exact, last_logits_only=False)
    parts = {p.stem: ort.InferenceSession(p) for p in (folder / "onnx").iterdir()}
    decoder = parts["decoder_model_merged"]
    past = {
        node.name: np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32)
        for node in decoder.get_inputs()
        if node.name.startswith("past")
    }
    feeds = {
        "inputs_embeds": parts["embed_tokens"].run(None, {"input_ids": ids})[0],
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
    }
    return decoder.run(["logits"], feeds | past)[0][0]


def test_the_first_choices_are_those_of_the_dequantised_weights(
    smolvlm_source: Path, tmp_path: Path
) -> None:
    ids = np.random.default_rng(0).integers(3, 300, (1, N_TOKENS))
    expected = dequantised_logits(smolvlm_source, ids)
    exact = exported_logits(smolvlm_source, tmp_path / "exact", ids, exact=True)
    np.testing.assert_array_equal(exact.argmax(-1), expected.argmax(-1))
    first = np.argsort(expected, axis=-1)[:, -40:]
    near = [np.take_along_axis(logits, first, -1) for logits in (exact, expected)]
    np.testing.assert_allclose(*near, atol=1e-3)
    rounded = exported_logits(smolvlm_source, tmp_path / "rounded", ids, exact=False)
    assert np.abs(rounded - expected).max() > 0.05  # or the two would be the same graph


@pytest.mark.parametrize("n_vocab", [50, 500])
def test_the_likeliest_logits_are_computed_again(n_vocab: int, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    levels, scales = quantize_blocks(random.standard_normal((n_vocab, 64), np.float32), 8)
    graph = Graph("head")
    x = graph.input("x", np.float32, ["batch", "sequence", 64])
    stored = graph.weight("levels", levels), graph.weight("scales", scales)
    y = head_int8(graph, x, *stored, width=64, n_vocab=n_vocab, exact=True)
    graph.output(y, "logits", np.float32, ["batch", "sequence", n_vocab])
    graph.save(tmp_path / "head.onnx", {})
    rows = random.standard_normal((2, 3, 64), np.float32)
    (found,) = ort.InferenceSession(tmp_path / "head.onnx").run(None, {"x": rows})
    expected = rows @ dequantize_blocks(levels, scales, 8).T
    order = np.argsort(-expected, axis=-1)
    first = order[..., :40]
    best = [np.take_along_axis(logits, first, -1) for logits in (found, expected)]
    np.testing.assert_allclose(*best, atol=1e-4)
    np.testing.assert_allclose(found, expected, atol=0.5)

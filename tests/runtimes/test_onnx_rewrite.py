"""Adapters for decoder graphs of other exporters, which have no inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mini_model import Mini, make_weights, write_model
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from edgevlm.engine.adapter import Lora, LowRank
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.errors import NotSupported
from edgevlm.models.onnx_export.quantize import dequantize_blocks, pack_levels, quantize_blocks
from edgevlm.runtimes.onnx_decoder import OnnxLanguageModel
from edgevlm.runtimes.onnx_proto import fields

Weights = dict[str, NDArray[np.float32]]
SCALE = 0.5


def named(model: onnx.ModelProto, weight: str, node: str) -> None:
    """Call products and their weights as an exporter does, `{i}` and `{part}` filled in."""
    names = {
        tensor.name: tensor.name.split(".")
        for tensor in model.graph.initializer
        if tensor.name[-2:] in (".q", ".k", ".v", ".o")
    }
    for tensor in model.graph.initializer:
        if tensor.name in names:
            layer, part = names[tensor.name]
            tensor.name = weight.format(i=layer, part=part)
    for one in model.graph.node:
        if len(one.input) == 2 and one.input[1] in names:
            layer, part = names[one.input[1]]
            one.input[1] = weight.format(i=layer, part=part)
            one.name = node.format(i=layer, part=part)


def by_genai(model: onnx.ModelProto) -> None:
    name = "model.layers.{i}.attn.{part}_proj.MatMul"
    named(model, f"{name}.weight", f"/{name.replace('.', '/').replace('layers/', 'layers.')}")


def by_torch(model: onnx.ModelProto) -> None:
    node = "/model/text_model/layers.{i}/self_attn/{part}_proj/MatMul"
    named(model, "onnx::MatMul_{i}{part}", node)


def transposed(model: onnx.ModelProto) -> None:
    """Named by weights alone, which lie as torch has them and are turned in the graph."""
    named(model, "model.layers.{i}.self_attn.{part}_proj.weight", "")
    turned = []
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_proj.weight"):
            array = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            turned.append(helper.make_node("Transpose", [tensor.name], [f"{tensor.name}.T"]))
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1].endswith("_proj.weight"):
            node.input[1] += ".T"
    nodes = [*turned, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def four_bits(model: onnx.ModelProto) -> None:
    by_genai(model)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "MatMul" or not node.input[1].endswith("MatMul.weight"):
            continue
        name = node.input[1]
        levels, scales = quantize_blocks(arrays[name].T, 4)
        packed = numpy_helper.from_array(pack_levels(levels, 4), f"{name}_Q4")
        model.graph.initializer.extend(
            [packed, numpy_helper.from_array(scales.ravel(), f"{name}_scales")]
        )
        n, k = levels.shape[0], arrays[name].shape[0]
        sizes = {"K": k, "N": n, "bits": 4, "block_size": 32}
        node.CopyFrom(
            helper.make_node(
                *("MatMulNBits", [node.input[0], f"{name}_Q4", f"{name}_scales"], node.output),
                *(f"{node.name}_Q4",),
                domain="com.microsoft",
                **sizes,
            )
        )


Edit = Callable[[onnx.ModelProto], None]


def write_foreign(folder: Path, mini: Mini, edit: Edit, *, outside: bool = False) -> ModelFiles:
    files = write_model(folder, mini)
    path = files.roles["decoder"]
    model = onnx.load(path)
    edit(model)
    place: dict[str, Any] = {"location": "decoder.onnx_data", "size_threshold": 1024}
    onnx.save(model, path, save_as_external_data=outside, **(place if outside else {}))
    return files


def random_update(mini: Mini, seed: int = 0) -> Lora:
    random = np.random.default_rng(seed)
    kv_width = mini.kv_heads * mini.head_dim
    widths = {"q": mini.hidden, "k": kv_width, "v": kv_width, "o": mini.hidden}
    decoder = {
        f"layers.{i}.self_attn.{part}_proj": LowRank(
            random.standard_normal((3, mini.hidden), np.float32) * 0.2,
            random.standard_normal((width, 3), np.float32),
        )
        for i in range(mini.layers)
        for part, width in widths.items()
    }
    return Lora("update", f"{seed:064}", decoder, {})


def merged(weights: Mapping[str, NDArray[np.float32]], lora: Lora) -> Weights:
    found = dict(weights)
    for name, update in lora.decoder.items():
        key = f"{name.split('.')[1]}.{name[-6]}"
        found[key] = found[key] + np.float32(SCALE) * (update.b @ update.a).T
    return found


def logits(model: OnnxLanguageModel, lora: Lora | None = None) -> NDArray[np.float32]:
    context = model.new_context()
    if lora is not None:
        context.use_adapters({model.load_adapter(lora): SCALE})
    context.extend([np.arange(9)], Cancel())
    return context.extend([np.arange(9, 10)], Cancel())


def load(files: ModelFiles) -> OnnxLanguageModel:
    return OnnxLanguageModel(files, LoadOptions(1))


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("attention", ["plain", "gqa"])
@pytest.mark.parametrize("edit", [by_genai, by_torch, transposed])
def test_as_if_merged(tmp_path: Path, edit: Edit, attention: Any, outside: bool) -> None:
    mini = Mini(attention=attention)
    files = write_foreign(tmp_path, mini, edit, outside=outside)
    model, lora = load(files), random_update(mini)
    base, before = logits(model), {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    found = logits(model, lora)
    (tmp_path / "merged").mkdir()
    expected = load(write_model(tmp_path / "merged", mini, merged(make_weights(mini), lora)))
    np.testing.assert_allclose(found, logits(expected), atol=1e-4)
    assert np.abs(found - base).max() > 0.5
    np.testing.assert_array_equal(logits(model), base)
    # Nothing is written: the weights stay in the files that they are in.
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize("attention", ["plain", "gqa"])
def test_rank_0_changes_no_bit(tmp_path: Path, attention: Any) -> None:
    mini = Mini(attention=attention)
    model = load(write_foreign(tmp_path, mini, by_genai))
    lora = random_update(mini)
    last = f"layers.{mini.layers - 1}.self_attn.o_proj"
    silent = LowRank(lora.decoder[last].a, np.zeros_like(lora.decoder[last].b))
    nothing = Lora("nothing", "0" * 64, {last: silent}, {})
    np.testing.assert_array_equal(logits(model, nothing), logits(model))


def test_half_precision(tmp_path: Path) -> None:
    mini = Mini(attention="gqa", dtype="float16")
    model, lora = load(write_foreign(tmp_path, mini, by_genai)), random_update(mini)
    (tmp_path / "merged").mkdir()
    expected = load(write_model(tmp_path / "merged", mini, merged(make_weights(mini), lora)))
    np.testing.assert_allclose(logits(model, lora), logits(expected), atol=0.05)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numbers_beyond_half_precision_are_refused(tmp_path: Path, dtype: Any) -> None:
    mini = Mini(attention="gqa", dtype=dtype)
    model, lora = load(write_foreign(tmp_path, mini, by_genai)), random_update(mini)
    module, update = next(iter(lora.decoder.items()))
    in_a = LowRank(np.full_like(update.a, 1e5), update.b * np.float32(1e-5))
    in_b = LowRank(update.a * np.float32(1e-4), np.full_like(update.b, -4e4))
    context = model.new_context()
    context.use_adapters({model.load_adapter(lora): 1.0})
    expected = context.extend([np.arange(9)], Cancel())
    for wide, scale in ((in_a, 0.1), (in_b, 1.7), (in_b, -1.7)):
        large = model.load_adapter(Lora("large", "0" * 64, {**lora.decoder, module: wide}, {}))
        context.truncate(0)
        if dtype == "float16":
            with pytest.raises(NotSupported, match=rf"large times {scale} has numbers beyond"):
                context.use_adapters({large: scale})
            np.testing.assert_array_equal(context.extend([np.arange(9)], Cancel()), expected)
        else:
            context.use_adapters({large: scale})
            assert np.isfinite(context.extend([np.arange(9)], Cancel())).all()
    context.use_adapters({large: 1.6})
    context.truncate(0)
    assert np.isfinite(context.extend([np.arange(9)], Cancel())).all()


def test_four_bits(tmp_path: Path) -> None:
    mini = Mini(attention="gqa")
    model, lora = load(write_foreign(tmp_path, mini, four_bits)), random_update(mini)
    weights = make_weights(mini)
    for name in weights:
        if name[-2:] in (".q", ".k", ".v", ".o"):
            levels, scales = quantize_blocks(weights[name].T, 4)
            weights[name] = dequantize_blocks(levels, scales, 4).T
    (tmp_path / "merged").mkdir()
    expected = load(write_model(tmp_path / "merged", mini, merged(weights, lora)))
    np.testing.assert_allclose(logits(model, lora), logits(expected), atol=1e-3)


def test_dynamic_quantization(tmp_path: Path) -> None:
    mini = Mini(attention="gqa")
    files = write_foreign(tmp_path, mini, by_torch)
    path = files.roles["decoder"]
    float_type = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(path, tmp_path / "int8.onnx", per_channel=True, extra_options=float_type)
    model = load(ModelFiles("mini", tmp_path, {**files.roles, "decoder": tmp_path / "int8.onnx"}))
    kinds = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert "MatMulInteger" in kinds
    lora = random_update(mini)
    (tmp_path / "merged").mkdir()
    expected = load(write_model(tmp_path / "merged", mini, merged(make_weights(mini), lora)))
    found, wanted = logits(model, lora), logits(expected)
    assert np.corrcoef(found, wanted)[0, 1] > 0.995
    assert np.corrcoef(found, logits(model))[0, 1] < 0.9


def test_refuses_graphs_that_name_no_layers(tmp_path: Path) -> None:
    mini = Mini()
    model = load(write_model(tmp_path, mini))
    base = logits(model)
    with pytest.raises(NotSupported, match=r"decoder\.onnx takes no adapters.* names no layers"):
        model.load_adapter(random_update(mini))
    np.testing.assert_array_equal(logits(model), base)


def test_refuses_two_products_of_a_name(tmp_path: Path) -> None:
    mini = Mini()

    def twice(model: onnx.ModelProto) -> None:
        by_torch(model)
        for node in model.graph.node:
            if "k_proj" in node.name:
                node.name = node.name.replace("k_proj", "q_proj").replace("/model", "/other")

    model = load(write_foreign(tmp_path, mini, twice))
    with pytest.raises(NotSupported, match=r"two products for layers\.0\.self_attn\.q_proj"):
        model.load_adapter(random_update(mini))


def test_refuses_modules_that_the_graph_does_not_name(tmp_path: Path) -> None:
    mini = Mini()
    model = load(write_foreign(tmp_path, mini, by_torch))
    update = LowRank(np.ones((2, 32), np.float32), np.ones((64, 2), np.float32))
    lora = Lora("wide", "0" * 64, {"layers.0.mlp.up_proj": update}, {})
    with pytest.raises(NotSupported, match=r"wide changes layers\.0\.mlp\.up_proj, .* mini has no"):
        model.load_adapter(lora)


@pytest.mark.parametrize(
    "data",
    [b"\x0a\x05abc", b"\x0b", b"\x08", b"\x08" + b"\xff" * 10, b"\x0a\xff\xff\xff\x7f", b"\x0d1"],
)
def test_messages_that_are_none(data: bytes) -> None:
    with pytest.raises(ValueError):
        list(fields(data, 0, len(data)))

"""A decoder, its embeddings and a vision encoder written by hand, node by node, with numpy
references: small enough to read, and laid out as community exports lay theirs out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgevlm.engine.contract import ModelFiles

PATCH = 4
FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class Mini:
    """Sizes of the decoder, and in which of the ways that exports differ it is written."""

    layers: int = 2
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 37
    context: int = 160
    attention: Literal["plain", "gqa"] = "plain"
    dtype: Literal["float32", "float16"] = "float32"
    positions_from: Literal["input", "mask", "past"] = "input"
    takes_logit_count: bool = False
    labelled: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def make_weights(mini: Mini, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    kv_width = mini.kv_heads * mini.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (mini.vocab, mini.hidden),
        "position": (mini.context, mini.hidden),
        "head": (mini.hidden, mini.vocab),
    }
    for i in range(mini.layers):
        shapes |= {
            f"{i}.q": (mini.hidden, mini.hidden),
            f"{i}.k": (mini.hidden, kv_width),
            f"{i}.v": (mini.hidden, kv_width),
            f"{i}.o": (mini.hidden, mini.hidden),
        }
    return {
        name: (random.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)
        for name, shape in shapes.items()
    }


def reference_logits(
    mini: Mini, weights: dict[str, NDArray[np.float32]], embeddings: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Logits [n, n_vocab] of the whole sequence at once, in float64, without a cache."""
    n = len(embeddings)
    group = mini.heads // mini.kv_heads
    x = embeddings.astype(np.float64) + weights["position"][:n]
    future = np.triu(np.full((n, n), -np.inf), 1)
    for i in range(mini.layers):
        q = (x @ weights[f"{i}.q"]).reshape(n, mini.heads, -1)
        k = (x @ weights[f"{i}.k"]).reshape(n, mini.kv_heads, -1).repeat(group, axis=1)
        v = (x @ weights[f"{i}.v"]).reshape(n, mini.kv_heads, -1).repeat(group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) * mini.head_dim**-0.5 + future
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + attended.reshape(n, -1) @ weights[f"{i}.o"]
    return np.asarray(x @ weights["head"])


class _Graph:
    """Collects nodes; each helper returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def const(self, value: object, dtype: str = "int64", name: str = "") -> str:
        name = name or f"const{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: object) -> str:
        outputs = list(outputs) or [f"{kind.lower()}{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs[0]

    def heads(self, x: str, heads: int) -> str:
        split = self.op("Reshape", x, self.const([0, 0, heads, -1]))
        return self.op("Transpose", split, perm=[0, 2, 1, 3])


def write_decoder(path: Path, mini: Mini, weights: dict[str, NDArray[np.float32]]) -> None:
    """The decoder with a KV cache, by GroupQueryAttention or by plain operators."""
    g = _Graph()
    for name, value in weights.items():
        if name != "embed":
            g.const(value, mini.dtype, name)
    total = g.op("Gather", g.op("Shape", "attention_mask"), g.const(1))
    new = g.op("Gather", g.op("Shape", "inputs_embeds"), g.const(1))
    x = g.op("Add", "inputs_embeds", g.op("Gather", "position", _positions(g, mini, total, new)))
    attend = _grouped(g, mini) if mini.attention == "gqa" else _plain(g, mini, total, new)
    for i in range(mini.layers):
        attended = attend(i, *(g.op("MatMul", x, f"{i}.{part}") for part in "qkv"))
        x = g.op("Add", x, g.op("MatMul", attended, f"{i}.o"))
    if mini.takes_logit_count:
        start = g.op("Reshape", g.op("Neg", "num_logits_to_keep"), g.const([1]))
        x = g.op("Slice", x, start, g.const([2**31]), g.const([1]))
    g.op("MatMul", x, "head", outputs=["logits"])
    _save(path, g, list(_decoder_inputs(mini)), list(_decoder_outputs(mini)), mini)


def _positions(g: _Graph, mini: Mini, total: str, new: str) -> str:
    if mini.positions_from == "input":
        return "position_ids"
    past = g.op("Sub", total, new)
    if mini.positions_from == "past":
        past = g.op("Gather", g.op("Shape", "past_key_values.0.key"), g.const(2))
    return g.op("Unsqueeze", g.op("Range", past, g.op("Add", past, new), g.const(1)), g.const([0]))


Attend = Callable[[int, str, str, str], str]


def _grouped(g: _Graph, mini: Mini) -> Attend:
    counted = g.op("ReduceSum", "attention_mask", g.const([1]))
    last = g.op("Cast", g.op("Sub", counted, g.const([[1]])), to=TensorProto.INT32)
    seqlens = g.op("Reshape", last, g.const([-1]))
    mask_shape = g.op("Shape", "attention_mask")
    total = g.op("Cast", g.op("Gather", mask_shape, g.const(1)), to=TensorProto.INT32)

    def attend(i: int, q: str, k: str, v: str) -> str:
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        return g.op(
            "GroupQueryAttention",
            *(q, k, v, *past, seqlens, total),
            outputs=[f"attended{i}", f"present.{i}.key", f"present.{i}.value"],
            domain="com.microsoft",
            num_heads=mini.heads,
            kv_num_heads=mini.kv_heads,
        )

    return attend


def _plain(g: _Graph, mini: Mini, total: str, new: str) -> Attend:
    one = g.const(1)
    queries = g.op("Range", g.op("Sub", total, new), total, one)
    future = g.op(
        "Less",
        g.op("Unsqueeze", queries, g.const([1])),
        g.op("Unsqueeze", g.op("Range", g.const(0), total, one), g.const([0])),
    )
    bias = g.op("Where", future, g.const(-1e4, mini.dtype), g.const(0, mini.dtype))
    scale = g.const(mini.head_dim**-0.5, mini.dtype)
    group = mini.heads // mini.kv_heads

    def repeated(x: str) -> str:
        wide = g.op("Unsqueeze", x, g.const([2]))
        wide = g.op("Tile", wide, g.const([1, 1, group, 1, 1]))
        return g.op("Reshape", wide, g.const([1, mini.heads, -1, mini.head_dim]))

    def attend(i: int, q: str, k: str, v: str) -> str:
        whole = [
            g.op(
                "Concat",
                f"past_key_values.{i}.{kind}",
                g.heads(x, mini.kv_heads),
                outputs=[f"present.{i}.{kind}"],
                axis=2,
            )
            for kind, x in (("key", k), ("value", v))
        ]
        keys = g.op("Transpose", repeated(whole[0]), perm=[0, 1, 3, 2])
        scores = g.op("Mul", g.op("MatMul", g.heads(q, mini.heads), keys), scale)
        shares = g.op("Softmax", g.op("Add", scores, bias), axis=-1)
        mixed = g.op("Transpose", g.op("MatMul", shares, repeated(whole[1])), perm=[0, 2, 1, 3])
        return g.op("Reshape", mixed, g.const([0, 0, mini.hidden]))

    return attend


def _decoder_inputs(mini: Mini) -> Iterator[onnx.ValueInfoProto]:
    real = FLOATS[mini.dtype]
    yield helper.make_tensor_value_info("inputs_embeds", real, ["batch", "new", mini.hidden])
    yield helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"])
    if mini.positions_from == "input":
        yield helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "new"])
    if mini.takes_logit_count:
        yield helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, [])
    for i in range(mini.layers):
        for kind in ("key", "value"):
            shape = ["batch", mini.kv_heads, "past", mini.head_dim]
            yield helper.make_tensor_value_info(f"past_key_values.{i}.{kind}", real, shape)


def _decoder_outputs(mini: Mini) -> Iterator[onnx.ValueInfoProto]:
    real = FLOATS[mini.dtype]
    yield helper.make_tensor_value_info("logits", real, ["batch", "rows", mini.vocab])
    for i in range(mini.layers):
        for kind in ("key", "value"):
            shape = ["batch", mini.kv_heads, "whole", mini.head_dim]
            yield helper.make_tensor_value_info(f"present.{i}.{kind}", real, shape)


def write_embeddings(path: Path, mini: Mini, weights: dict[str, NDArray[np.float32]]) -> None:
    g = _Graph()
    g.const(weights["embed"], mini.dtype, "embed")
    g.op("Gather", "embed", "input_ids", outputs=["inputs_embeds"])
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "n"])
    embeds = helper.make_tensor_value_info(
        "inputs_embeds", FLOATS[mini.dtype], ["batch", "n", mini.hidden]
    )
    _save(path, g, [ids], [embeds], mini)


def write_vision(path: Path, mini: Mini, *, batched: bool = True, masked: bool = True) -> None:
    """`reference_features` as a graph, with or without a batch dimension and a mask."""
    g = _Graph()
    pixels = "pixel_values"
    if masked:
        mask = g.op("Cast", "pixel_attention_mask", to=FLOATS[mini.dtype])
        pixels = g.op("Mul", pixels, g.op("Unsqueeze", mask, g.const([2 if batched else 1])))
    tiles = g.op("Reshape", pixels, g.const([-1, 3, 2, PATCH, 2, PATCH]))
    means = g.op("ReduceMean", tiles, axes=[3, 5], keepdims=0)
    rows = g.op("Reshape", g.op("Transpose", means, perm=[0, 2, 3, 1]), g.const([-1, 4, 3]))
    g.op("MatMul", rows, g.const(projection(mini), mini.dtype), outputs=["image_features"])
    front: list[str | int] = ["batch", "tiles"] if batched else ["tiles"]
    real, size = FLOATS[mini.dtype], 2 * PATCH
    inputs = [helper.make_tensor_value_info("pixel_values", real, [*front, 3, size, size])]
    if masked:
        shape = [*front, size, size]
        inputs.append(
            helper.make_tensor_value_info("pixel_attention_mask", TensorProto.BOOL, shape)
        )
    output = helper.make_tensor_value_info("image_features", real, ["rows", 4, mini.hidden])
    _save(path, g, inputs, [output], mini)


def projection(mini: Mini) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((3, mini.hidden)).astype(np.float32)


def reference_features(mini: Mini, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Four tokens a tile [n_tiles, 3, 2 * PATCH, 2 * PATCH]: the mean colour of each quarter."""
    means = pixels.reshape(-1, 3, 2, PATCH, 2, PATCH).mean((3, 5))
    return means.transpose(0, 2, 3, 1).reshape(-1, 3) @ projection(mini)


def write_model(
    folder: Path, mini: Mini, weights: dict[str, NDArray[np.float32]] | None = None
) -> ModelFiles:
    """All three files and the configuration, as a model store would hand them out."""
    weights = make_weights(mini) if weights is None else weights
    roles = {
        role: folder / f"{role}.onnx" for role in ("vision_encoder", "embed_tokens", "decoder")
    }
    write_decoder(roles["decoder"], mini, weights)
    write_embeddings(roles["embed_tokens"], mini, weights)
    write_vision(roles["vision_encoder"], mini)
    config = {"text_config": {"max_position_embeddings": mini.context}}
    (folder / "config.json").write_text(json.dumps(config))
    return ModelFiles("mini", folder, roles)


def _save(
    path: Path,
    g: _Graph,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    mini: Mini,
) -> None:
    graph = helper.make_graph(g.nodes, path.stem, inputs, outputs, g.initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if mini.labelled:
        labels = {"edgevlm.attention": mini.attention}
        if mini.attention == "gqa":
            labels["edgevlm.shared_kv"] = "1"
        helper.set_model_props(model, labels)
    onnx.save(model, path)

"""Inputs for adapters (`onnx_adapter`) in a graph that was exported without.

Every product that bears the name of a module (`onnx_names`) gets its update behind it: the
product's output is renamed, and what it was called is the sum. The rest of the graph stays as it
is, and its weights where they are: those inside the file are referred to as lying outside, in
that file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import NotSupported
from edgevlm.runtimes.onnx_names import Naming
from edgevlm.runtimes.onnx_proto import Data, Field, content, fields, header, integer, integers

EXPORT_AGAIN = "Export the model again (edgevlm model convert), or use another runtime."
_NO_LAYERS = "Use an adapter that leaves this part of the model alone."

# Numbers of fields, from onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT = 1, 5, 11
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER = 1, 3
_DIMS, _TYPE, _TENSOR_NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14

_FLOATS = (1, 10)  # float32 and float16
# Smaller ones are sizes and axes, which shape inference wants to read.
_LEAST_OUTSIDE = 4096


def graph_with_adapter_inputs(path: Path, naming: Naming) -> bytes:
    """The ONNX model at `path` with inputs for adapters, its weights still there.

    Raises NotSupported where no product has a name that is known, or two have the same, and
    where the file has gone since it was loaded.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _rewritten(data, len(data), path.name, naming)
    except (ValueError, RecursionError, OSError) as error:
        raise NotSupported(
            f"{path.name} takes no adapters, and can't be changed to: {error}.",
            hint=_NO_LAYERS if isinstance(error, _Foreign) else EXPORT_AGAIN,
        ) from error


class _Foreign(ValueError):
    """No transformer, such as the built-in model's vision encoder, or one without its names."""


@dataclass(frozen=True, slots=True)
class _Node:
    field: Field
    op: str
    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    integers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """`dims` and `type` of a weight, `names` that it goes by. `raw` is where its bytes lie."""

    names: tuple[str, ...]
    dims: tuple[int, ...]
    type: int
    raw: Field | None = None


@dataclass(frozen=True, slots=True)
class _Product:
    """`node` gives `x` [..., in_features] times the weight of `module`."""

    node: _Node
    module: str
    x: str
    in_features: int
    out_features: int
    type: int


def _rewritten(data: Data, size: int, file_name: str, naming: Naming) -> bytes:
    pieces = []
    for part in fields(data, 0, size):
        if part.number == _MODEL_GRAPH:
            graph = _rewritten_graph(data, part, file_name, naming)
            pieces += [header(_MODEL_GRAPH, sum(map(len, graph))), *graph]
        else:
            pieces.append(data[part.start : part.end])
    return b"".join(pieces)


def _rewritten_graph(data: Data, graph: Field, file_name: str, naming: Naming) -> list[bytes]:
    parts = list(fields(data, graph.begin, graph.end))
    nodes = [_node(data, part) for part in parts if part.number == _GRAPH_NODE]
    tensors = {
        part.start: _tensor(data, part) for part in parts if part.number == _GRAPH_INITIALIZER
    }
    named = _Products(nodes, tensors.values()).named(naming)
    products = {product.node.field.start: product for product in named}
    pieces = []
    for part in parts:
        if part.start in products:
            pieces += _with_update(data, products[part.start])
        elif part.start in tensors:
            pieces.append(_outside(data, part, tensors[part.start], file_name))
        else:
            pieces.append(data[part.start : part.end])
    for product in products.values():
        pieces += _inputs(product)
    return pieces


class _Products:
    """Looks for the products of modules among the nodes of a graph."""

    def __init__(self, nodes: Sequence[_Node], tensors: Iterable[_Tensor]) -> None:
        self._nodes = nodes
        self._tensors = {tensor.names[0]: tensor for tensor in tensors}
        self._makers = {output: node for node in nodes for output in node.outputs}

    def named(self, naming: Naming) -> list[_Product]:
        """Raises ValueError for none, and for two of a name."""
        found: dict[str, _Product] = {}
        for node in self._nodes:
            product = self._product(node, naming)
            if product is not None:
                if product.module in found:
                    raise ValueError(f"it has two products for {product.module}")
                found[product.module] = product
        if not found:
            raise _Foreign("it names no layers that are known")
        return list(found.values())

    def _product(self, node: _Node, naming: Naming) -> _Product | None:
        if node.op == "MatMul" and len(node.inputs) == 2:
            x, weight = node.inputs[0], self._weight(node.inputs[1])
        elif node.op in ("MatMulNBits", "MatMulBnb4") and len(node.inputs) > 2:
            x, weight = node.inputs[0], self._packed(node)
        elif node.op == "Mul":
            x, weight = self._of_integers(node)
        else:
            return None
        if weight is None or len(weight.dims) != 2 or weight.type not in _FLOATS:
            return None
        module = next(filter(None, map(naming, (node.name, *weight.names))), None)
        return None if module is None else _Product(node, module, x, *weight.dims, weight.type)

    def _packed(self, node: _Node) -> _Tensor | None:
        """The weight of a product with scales, which know its float type."""
        scales = self._tensors.get(node.inputs[2])
        if scales is None or not {"K", "N"} <= set(node.integers):
            return None
        dims = node.integers["K"], node.integers["N"]
        return _Tensor((node.inputs[1],), dims, scales.type)

    def _of_integers(self, scaling: _Node) -> tuple[str, _Tensor | None]:
        """`Mul(Cast(MatMulInteger(DynamicQuantizeLinear(x), weight)), scales)`, which dynamic
        quantization makes of a product."""
        cast = self._makers.get(scaling.inputs[0])
        product = self._makers.get(cast.inputs[0]) if cast and cast.op == "Cast" else None
        if product is None or product.op != "MatMulInteger":
            return "", None
        quantized = self._makers.get(product.inputs[0])
        weight = self._tensors.get(product.inputs[1])
        if quantized is None or quantized.op != "DynamicQuantizeLinear" or weight is None:
            return "", None
        return quantized.inputs[0], _Tensor((product.name, *weight.names), weight.dims, _FLOATS[0])

    def _weight(self, name: str) -> _Tensor | None:
        """A weight as a product takes it, whatever it is widened from."""
        tensor = self._tensors.get(name)
        maker = self._makers.get(name)
        if tensor is not None or maker is None or not maker.inputs:
            return tensor
        if maker.op not in ("Cast", "Transpose", "DequantizeLinear"):
            return None
        source = self._weight(maker.inputs[0])
        if source is None:
            return None
        dims = source.dims[::-1] if maker.op == "Transpose" else source.dims
        type_ = maker.integers.get("to", source.type)
        if maker.op == "DequantizeLinear":
            scales = self._tensors.get(maker.inputs[1])
            type_ = scales.type if scales else 0
        return _Tensor(source.names, dims, type_)


def _with_update(data: Data, product: _Product) -> list[bytes]:
    """The product under another name, and nodes that add the update."""
    (y,) = product.node.outputs
    base = f"lora.{product.module}"
    node = product.node.field
    renamed = [
        content(_NODE_OUTPUT, f"{base}.base")
        if part.number == _NODE_OUTPUT
        else data[part.start : part.end]
        for part in fields(data, node.begin, node.end)
    ]
    return [
        content(_GRAPH_NODE, *renamed),
        _new_node("MatMul", (product.x, f"{base}.a"), f"{base}.inner"),
        _new_node("MatMul", (f"{base}.inner", f"{base}.b"), f"{base}.update"),
        _new_node("Add", (f"{base}.base", f"{base}.update"), y),
    ]


def _new_node(op: str, inputs: Sequence[str], output: str) -> bytes:
    return content(
        _GRAPH_NODE,
        *(content(_NODE_INPUT, name) for name in inputs),
        content(_NODE_OUTPUT, output),
        content(_NODE_NAME, f"{output}/{op}"),
        content(_NODE_OP, op),
    )


def _inputs(product: _Product) -> Iterator[bytes]:
    """Both inputs, and their defaults of rank 0."""
    base = f"lora.{product.module}"
    for name, sizes in (
        (f"{base}.a", (product.in_features, 0)),
        (f"{base}.b", (0, product.out_features)),
    ):
        dims = [content(1, integer(1, n) if n else content(2, f"{base}.rank")) for n in sizes]
        tensor_type = content(1, integer(1, product.type), content(2, *dims))
        yield content(_GRAPH_INPUT, content(1, name), content(2, tensor_type))
        yield content(
            _GRAPH_INITIALIZER,
            *(integer(_DIMS, size) for size in sizes),
            integer(_TYPE, product.type),
            content(_TENSOR_NAME, name),
            content(_RAW, b""),
        )


def _outside(data: Data, part: Field, tensor: _Tensor, file_name: str) -> bytes:
    """A weight inside the file as one that lies in it."""
    raw = tensor.raw
    if raw is None or raw.end - raw.begin < _LEAST_OUTSIDE:
        return data[part.start : part.end]
    place = {"location": file_name, "offset": raw.begin, "length": raw.end - raw.begin}
    return content(
        _GRAPH_INITIALIZER,
        *(data[f.start : f.end] for f in fields(data, part.begin, part.end) if f.number != _RAW),
        *(content(_EXTERNAL, content(1, key), content(2, str(v))) for key, v in place.items()),
        integer(_LOCATION, 1),
    )


def _node(data: Data, field: Field) -> _Node:
    texts: dict[int, list[str]] = {}
    integers = {}
    for part in fields(data, field.begin, field.end):
        if part.number in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP):
            texts.setdefault(part.number, []).append(_text(data, part))
        elif part.number == _NODE_ATTRIBUTE:
            parts = {p.number: p for p in fields(data, part.begin, part.end)}
            if _ATTRIBUTE_NAME in parts and _ATTRIBUTE_INTEGER in parts:
                integers[_text(data, parts[_ATTRIBUTE_NAME])] = parts[_ATTRIBUTE_INTEGER].value
    (op,) = texts.get(_NODE_OP, [""])
    (name,) = texts.get(_NODE_NAME, [""])
    inputs, outputs = texts.get(_NODE_INPUT, []), texts.get(_NODE_OUTPUT, [])
    return _Node(field, op, name, inputs, outputs, integers)


def _tensor(data: Data, field: Field) -> _Tensor:
    name, dims, type_, raw = "", [], 0, None
    for part in fields(data, field.begin, field.end):
        if part.number == _TENSOR_NAME:
            name = _text(data, part)
        elif part.number == _TYPE:
            type_ = part.value
        elif part.number == _RAW:
            raw = part
        elif part.number == _DIMS:
            dims += integers(data, part)
    return _Tensor((name,), tuple(dims), type_, raw)


def _text(data: Data, field: Field) -> str:
    return data[field.begin : field.end].decode()

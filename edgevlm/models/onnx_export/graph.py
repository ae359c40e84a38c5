"""Writing an ONNX file node by node.

A thin layer over `onnx.helper`: values are strings, `node` names its outputs
itself, small constants are shared, and weights are kept as numpy arrays until
the file is written, inside it where they fit and beside it where they don't.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

OPSET = 20  # the first with Gelu
MICROSOFT = "com.microsoft"
# protobuf refuses messages from 2 GiB on; the graph itself needs some of it.
MAX_INLINE_BYTES = 2**31 - 2**24
EXTERNAL_ALIGNMENT = 4096

Shape: TypeAlias = Sequence[int | str]


class Graph:
    """One ONNX graph under construction. In shapes, a string names a size left open."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._scopes: list[str] = []
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._weights: dict[str, NDArray[Any]] = {}
        self._external: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of the nodes made within the block."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def input(self, name: str, dtype: Any, shape: Shape) -> str:
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def optional_input(self, name: str, default: NDArray[Any], shape: Shape) -> str:
        """An input that is `default` where a run leaves it out."""
        return self.weight(self.input(name, default.dtype, shape), default)

    def output(self, value: str, name: str, dtype: Any, shape: Shape) -> None:
        """Publish `value` as the graph output `name`."""
        if value != name:
            self._append("Identity", [value], [name], "", {})
        self._outputs.append(_value_info(name, dtype, shape))

    def node(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the name of that output."""
        return self.nodes(op_type, *inputs, n_outputs=1, domain=domain, **attributes)[0]

    def nodes(
        self, op_type: str, *inputs: str, n_outputs: int, domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs and return their names."""
        base = "/".join([*self._scopes, f"{op_type}.{len(self._nodes)}"])
        names = tuple(base if n == 0 else f"{base}:{n}" for n in range(n_outputs))
        self._append(op_type, list(inputs), list(names), domain, attributes)
        return names

    def named_nodes(
        self,
        op_type: str,
        *inputs: str,
        outputs: Sequence[str],
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """Add a node whose outputs carry the names given; an empty name leaves one out."""
        self._append(op_type, list(inputs), list(outputs), domain, attributes)

    def _append(
        self,
        op_type: str,
        inputs: list[str],
        outputs: list[str],
        domain: str,
        attributes: Mapping[str, Any],
    ) -> None:
        name = "/".join([*self._scopes, f"{op_type}.{len(self._nodes)}"])
        node = helper.make_node(op_type, inputs, outputs, name=name, domain=domain, **attributes)
        self._nodes.append(node)

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small constant; equal ones share a tensor."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant.{len(self._constants)}"
            self._weights[self._constants[key]] = array
        return self._constants[key]

    def weight(self, name: str, array: NDArray[Any]) -> str:
        if name in self._weights:
            raise ValueError(f"two weights are called {name}")
        self._weights[name] = array
        return name

    def external_weight(
        self, name: str, dtype: Any, shape: Sequence[int], location: str, offset: int
    ) -> str:
        """A weight whose bytes lie at `offset` of the file `location` beside the ONNX file."""
        if name not in self._external:
            self._external[name] = _external_tensor(name, dtype, shape, location, offset)
        return name

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file, with `<name>_data` beside it where the weights pass 2 GiB.

        It has its name once it is whole.
        """
        n_bytes = sum(array.nbytes for array in self._weights.values())
        if n_bytes <= MAX_INLINE_BYTES:
            tensors = [_inline_tensor(name, array) for name, array in self._weights.items()]
        else:
            tensors = _write_external(path.with_name(path.name + "_data"), self._weights)
        graph = helper.make_graph(
            self._nodes,
            self.name,
            self._inputs,
            self._outputs,
            initializer=[*tensors, *self._external.values()],
        )
        model = helper.make_model(
            graph,
            producer_name="edgevlm",
            ir_version=10,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        )
        helper.set_model_props(model, dict(sorted(metadata.items())))
        draft = path.with_name(path.name + ".part")
        draft.write_bytes(model.SerializeToString(deterministic=True))
        draft.replace(path)


def _element_type(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _value_info(name: str, dtype: Any, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _element_type(dtype), list(shape))


def _inline_tensor(name: str, array: NDArray[Any]) -> TensorProto:
    data = np.ascontiguousarray(array).tobytes()
    return helper.make_tensor(name, _element_type(array.dtype), array.shape, data, raw=True)


def _external_tensor(
    name: str, dtype: Any, shape: Sequence[int], location: str, offset: int
) -> TensorProto:
    tensor = TensorProto(name=name, data_type=_element_type(dtype), dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    length = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _write_external(path: Path, weights: Mapping[str, NDArray[Any]]) -> list[TensorProto]:
    tensors = []
    with path.open("wb") as file:
        for name, array in weights.items():
            # Shape inference wants the small integers (axes, shapes) inside the file.
            if array.nbytes < EXTERNAL_ALIGNMENT:
                tensors.append(_inline_tensor(name, array))
                continue
            offset = -(-file.tell() // EXTERNAL_ALIGNMENT) * EXTERNAL_ALIGNMENT
            file.write(b"\0" * (offset - file.tell()))
            file.write(np.ascontiguousarray(array).data)
            tensors.append(_external_tensor(name, array.dtype, array.shape, path.name, offset))
    return tensors

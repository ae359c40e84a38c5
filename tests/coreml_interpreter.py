"""A Core ML package run operation by operation with numpy, where there is no Core ML.

It stands in for `edgevlm.runtimes.coreml_predict.Package`, whose methods it has. The
program is read back from the saved package: what it computes is what was written. Every
operation computes in float32 and rounds to the type that the program declares, as Core ML's
kernels are free to; kernels, placement and speed only a Mac can show.

The operations are those of the MIL opset iOS 18 that our packages use
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import erf, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil.frontend import milproto
from coremltools.converters.mil.mil import types
from coremltools.proto import Model_pb2
from numpy.typing import NDArray

Array = NDArray[Any]
_ROOT = "Data/com.apple.CoreML"


class InterpretedPackage:
    """A package as `coreml_predict.Package` gives it; a state is a dictionary of arrays."""

    def __init__(self, path: Path, units: str = "ALL", cache: Path | None = None) -> None:
        self.path, self.units = path, units
        self.predictions = 0
        self.before: Callable[[], None] = lambda: None
        model = Model_pb2.Model()
        model.ParseFromString((path / _ROOT / "model.mlmodel").read_bytes())
        program = milproto.load.load(
            model_spec=model,
            specification_version=model.specificationVersion,
            file_weights_dir=str(path / _ROOT / "weights"),
        )
        self.function = program.functions["main"]
        self._constants: dict[str, Any] = {}
        self._operations = [op for op in self.function.operations if not self._settle(op)]

    def new_state(self) -> dict[str, Array]:
        return {
            name: np.zeros(var.shape, _dtype(var.sym_type.wrapped_type()))
            for name, var in self.function.inputs.items()
            if types.is_state(var.sym_type)
        }

    def write_state(self, state: dict[str, Array], name: str, value: Array) -> None:
        assert (value.dtype, value.shape) == (state[name].dtype, state[name].shape)
        state[name] = value.copy()

    def predict(
        self, inputs: Mapping[str, Array], state: dict[str, Array] | None = None
    ) -> dict[str, Array]:
        self.before()
        self.predictions += 1
        values: dict[str, Any] = {**self._constants, **inputs}
        for op in self._operations:
            self._run(op, values, state)
        return {var.name: values[var.name] for var in self.function.outputs}

    def close(self) -> None: ...

    def _settle(self, op: Any) -> bool:
        """Whether the operation is a constant, dequantised once."""
        if op.op_type == "const":
            self._constants[op.outputs[0].name] = op.outputs[0].val
        elif op.op_type.startswith("constexpr_"):
            self._run(op, self._constants, None)
        else:
            return False
        return True

    def _run(self, op: Any, values: dict[str, Any], state: dict[str, Array] | None) -> None:
        if op.op_type in ("read_state", "coreml_update_state"):
            assert state is not None, "this package wants a state"
            name = (op.inputs.get("input") or op.inputs["state"]).name
            if op.op_type == "coreml_update_state":
                state[name] = _value(op.inputs["value"], values)
            values[op.outputs[0].name] = state[name]
            return
        arguments = {name: _value(var, values) for name, var in op.inputs.items()}
        results = OPERATIONS[op.op_type](**arguments)
        for var, result in zip(op.outputs, _several(results), strict=True):
            values[var.name] = np.asarray(result).astype(_dtype(var.dtype), copy=False)


def install(patch: pytest.MonkeyPatch) -> None:
    """Have the runtime's classes open packages with the interpreter, and run here."""
    patch.setattr("edgevlm.runtimes.coreml_predict.Package", InterpretedPackage)
    patch.setattr("edgevlm.runtimes.coreml.CoreMLRuntime.unavailable", lambda self: None)


def _value(var: Any, values: dict[str, Any]) -> Any:
    if isinstance(var, list | tuple):
        return [_value(each, values) for each in var]
    return None if var is None else values[var.name]


def _several(results: Any) -> Any:
    return results if isinstance(results, list) else [results]


def _dtype(of_mil: Any) -> Any:
    return types.nptype_from_builtin(of_mil.get_primitive() if types.is_tensor(of_mil) else of_mil)


def _wide(x: Any) -> Array:
    """float16 as float32, so that sums don't overflow or lose what a kernel keeps."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _slices(x: Array, begin: Any, end: Any, stride: Any, begin_mask: Any, end_mask: Any) -> Any:
    free = [False] * len(begin)
    stride = [1] * len(begin) if stride is None else stride
    begins = [None if m else int(b) for m, b in zip(_or(begin_mask, free), begin, strict=True)]
    ends = [None if m else int(e) for m, e in zip(_or(end_mask, free), end, strict=True)]
    return [slice(b, e, int(s)) for b, e, s in zip(begins, ends, stride, strict=True)]


def _or(mask: Any, free: list[bool]) -> Any:
    return free if mask is None else mask


def slice_by_index(
    x: Array,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Array:
    squeeze = _or(squeeze_mask, [False] * len(begin))
    slices = _slices(x, begin, end, stride, begin_mask, end_mask)
    index = [int(b) if q else s for q, b, s in zip(squeeze, begin, slices, strict=True)]
    found: Array = x[tuple(index)]
    return found


def slice_update(
    x: Array,
    update: Array,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> Array:
    """Squeezed dimensions are missing in the update."""
    squeeze = _or(squeeze_mask, [False] * len(begin))
    slices = _slices(x, begin, end, stride, begin_mask, end_mask)
    index = [int(b) if q else s for q, b, s in zip(squeeze, begin, slices, strict=True)]
    updated = x.copy()
    assert updated[tuple(index)].shape == update.shape
    updated[tuple(index)] = update
    return updated


def constexpr_blockwise_shift_scale(data: Array, scale: Array, offset: Any = None) -> Array:
    values = data.astype(np.float32)
    if offset is not None:
        values = values - _blocks(offset, data.shape)
    return values * _blocks(scale, data.shape)


def _blocks(scale: Array, shape: tuple[int, ...]) -> Array:
    scale = scale.astype(np.float32)
    for axis, size in enumerate(shape):
        scale = np.repeat(scale, size // scale.shape[axis], axis)
    return scale


def layer_norm(
    x: Array, axes: Any, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5
) -> Array:
    x, axes = _wide(x), tuple(int(axis) for axis in axes)
    centred = x - x.mean(axes, keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + _wide(epsilon))
    normed = normed if gamma is None else normed * _wide(gamma)
    return normed if beta is None else normed + _wide(beta)


def gelu(x: Array, mode: str = "EXACT") -> Array:
    x = _wide(x)
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(erf, otypes=[np.float32])(x / sqrt(2)))


def softmax(x: Array, axis: Any = -1) -> Array:
    x = _wide(x)
    powers = np.exp(x - x.max(int(axis), keepdims=True))
    normed: Array = powers / powers.sum(int(axis), keepdims=True)
    return normed


def patches(
    x: Array,
    weight: Array,
    bias: Any = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: Any = 1,
) -> Array:
    """A convolution whose windows lie side by side."""
    n_out, channels, height, width = weight.shape
    assert list(strides) == [height, width]
    assert pad_type == "valid" or not np.any(pad)
    assert groups == 1
    assert np.all(np.asarray(dilations) == 1)
    rows, columns = x.shape[2] // height, x.shape[3] // width
    windows = _wide(x).reshape(channels, rows, height, columns, width).transpose(1, 3, 0, 2, 4)
    found = windows.reshape(rows * columns, -1) @ _wide(weight).reshape(n_out, -1).T
    found = found if bias is None else found + _wide(bias)
    return found.T.reshape(1, n_out, rows, columns)


def split(x: Array, split_sizes: Any, axis: Any, num_splits: Any = None) -> list[Array]:
    return np.split(x, np.cumsum(split_sizes)[:-1], int(axis))


def concat(values: Any, axis: Any, interleave: Any = False) -> Array:
    assert not interleave
    return np.concatenate([np.atleast_1d(value) for value in values], int(axis))


def gather(
    x: Array, indices: Any, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False
) -> Array:
    assert batch_dims == 0
    return np.take(x, indices, int(axis))


def matmul(x: Array, y: Array, transpose_x: Any = False, transpose_y: Any = False) -> Array:
    x = _wide(x).swapaxes(-1, -2) if transpose_x else _wide(x)
    y = _wide(y).swapaxes(-1, -2) if transpose_y else _wide(y)
    product: Array = x @ y
    return product


def linear(x: Array, weight: Array, bias: Any = None) -> Array:
    product: Array = _wide(x) @ _wide(weight).T
    return product if bias is None else product + _wide(bias)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "abs": lambda x: np.abs(x),
    "add": lambda x, y: _wide(x) + _wide(y),
    "cast": lambda x, dtype: x,
    "concat": concat,
    "constexpr_blockwise_shift_scale": constexpr_blockwise_shift_scale,
    "conv": patches,
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(int(axis) for axis in axes)),
    "gather": gather,
    "gelu": gelu,
    "inverse": lambda x, epsilon: 1 / (_wide(x) + _wide(epsilon)),
    "layer_norm": layer_norm,
    "linear": linear,
    "matmul": matmul,
    "maximum": lambda x, y: np.maximum(x, y),
    "mul": lambda x, y: _wide(x) * _wide(y),
    "real_div": lambda x, y: _wide(x) / _wide(y),
    "reduce_max": lambda x, axes, keep_dims: x.max(tuple(axes), keepdims=bool(keep_dims)),
    "reduce_mean": lambda x, axes, keep_dims: _wide(x).mean(tuple(axes), keepdims=bool(keep_dims)),
    "reshape": lambda x, shape: x.reshape([int(size) for size in shape]),
    "rsqrt": lambda x, epsilon: 1 / np.sqrt(_wide(x) + _wide(epsilon)),
    "shape": lambda x: x.shape,
    "silu": lambda x: _wide(x) / (1 + np.exp(-_wide(x))),
    "slice_by_index": slice_by_index,
    "slice_update": slice_update,
    "softmax": softmax,
    "split": split,
    "sub": lambda x, y: x - y,
    "transpose": lambda x, perm: x.transpose([int(axis) for axis in perm]),
}

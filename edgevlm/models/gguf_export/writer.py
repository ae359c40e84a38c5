"""A GGUF file written tensor by tensor: only one of them is in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import gguf
import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import NotSupported
from edgevlm.models.disk import sync_file, sync_folder
from edgevlm.models.progress import Progress

Width: TypeAlias = Literal["f32", "f16", "q8_0"]
Value: TypeAlias = (
    bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float] | Sequence[bool]
)

_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_DTYPES: Mapping[str, Any] = {"f32": np.float32, "f16": np.float16, "q8_0": np.uint8}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor to be written: `read` gives it as float32 of this `shape` when its turn comes."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.float32]]
    width: Width

    def encode(self) -> NDArray[Any]:
        """The tensor at its width. Raises what `read` does, and NotSupported."""
        values = self.read()
        if self.width == "f32":
            return values
        if self.width == "q8_0":
            blocks: NDArray[Any] = gguf.quants.quantize(values, _TYPES["q8_0"])
            return blocks
        with np.errstate(over="raise"):
            try:
                return values.astype(np.float16)
            except FloatingPointError as error:
                raise NotSupported(
                    f"{self.name} has numbers beyond what 16 bits hold.",
                    hint="Convert this model at 32 bits.",
                ) from error

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the array that `encode` returns."""
        if self.width != "q8_0":
            return self.shape
        stored: tuple[int, ...] = gguf.quant_shape_to_byte_shape(self.shape, _TYPES["q8_0"])
        return stored

    @property
    def n_bytes(self) -> int:
        itemsize: int = np.dtype(_DTYPES[self.width]).itemsize
        return math.prod(self.stored_shape) * itemsize


def matrix_width(shape: Sequence[int], width: Width) -> Width:
    """`width` where a tensor of this shape can have it: vectors stay at 32 bits, and rows that
    don't fill blocks at 16."""
    if len(shape) < 2:
        return "f32"
    return "f16" if width == "q8_0" and (len(shape) != 2 or shape[-1] % 32) else width


def write_gguf(
    path: Path,
    arch: str,
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorPlan],
    progress: Progress,
) -> None:
    """Write `path` whole or not at all. Raises what reading the tensors does, and OSError.

    A whole number goes in as uint32, since llama.cpp's keys have fixed types.
    """
    draft = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(draft, arch)
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name,
            tensor.stored_shape,
            np.dtype(_DTYPES[tensor.width]),
            tensor.n_bytes,
            raw_dtype=_TYPES[tensor.width],
        )
    progress.start(sum(tensor.n_bytes for tensor in tensors), f"Writing {path.name}")
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.encode())
            progress.advance(tensor.n_bytes)
        writer.close()
        sync_file(draft)
        draft.replace(path)
        sync_folder(path.parent)
    except BaseException:
        writer.close()
        draft.unlink(missing_ok=True)
        raise
    progress.finish()


def _add(writer: Any, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)

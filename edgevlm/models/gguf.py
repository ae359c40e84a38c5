"""Reading GGUF files with numpy alone.

A GGUF file is a header with two counts, typed key-value pairs, a table of tensors
and their bytes (specification: ggml's docs/gguf.md). It comes from elsewhere: every
count, length and offset is checked against the size of the file before it is used,
and a file that lies is refused with ModelCorrupt.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ModelCorrupt, NotSupported

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
MAX_DIMENSIONS = 4

Value: TypeAlias = bool | int | float | str | list[str] | NDArray[Any]

_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a tensor's weights are stored: `weights` of them in `n_bytes` bytes."""

    name: str
    weights: int
    n_bytes: int


BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    20: BlockType("IQ4_NL", 32, 18),
    23: BlockType("IQ4_XS", 256, 136),
    30: BlockType("BF16", 1, 2),
}
_Q4_1 = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("pairs", "u1", 16)])
_Q8_0 = np.dtype([("scale", "<f2"), ("levels", "i1", 32)])


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` is in numpy's order (the file's is the reverse); `start` counts from the file's."""

    type: BlockType
    shape: tuple[int, ...]
    start: int
    n_bytes: int


class GgufFile:
    """`metadata` and `tensors` of one file, whose weights are read when asked for.

    Raises ModelCorrupt for a file that contradicts itself, NotSupported for a
    version or a tensor type that this reader does not know.
    """

    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    def __init__(self, path: Path) -> None:
        if path.stat().st_size < 24:
            raise ModelCorrupt(f"{path.name} is not a GGUF file: it is too short.")
        self._bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        header = _Header(path.name, self._bytes)
        self.metadata, self.tensors = header.parse()

    def read_f32(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A tensor stored as float32."""
        return self._blocks(name, "F32", shape).view(np.dtype("<f4")).reshape(shape)

    def read_q4_1(
        self, name: str, shape: tuple[int, int]
    ) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.uint8]]:
        """A Q4_1 tensor [N, K]: weight = scale * level + minimum.

        Returns scales and minima float16 [N, K / 32], levels uint8 0..15 [N, K / 32, 32].
        """
        blocks = self._blocks(name, "Q4_1", shape).view(_Q4_1).reshape(shape[0], -1)
        pairs = blocks["pairs"]
        levels = np.concatenate([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=-1)
        return blocks["scale"], blocks["minimum"], levels

    def read_q8_0(
        self, name: str, shape: tuple[int, int]
    ) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
        """A Q8_0 tensor [N, K]: weight = scale * level.

        Returns scales float16 [N, K / 32] and levels int8 [N, K / 32, 32].
        """
        blocks = self._blocks(name, "Q8_0", shape).view(_Q8_0).reshape(shape[0], -1)
        return blocks["scale"], blocks["levels"]

    def read_bytes(self, name: str) -> NDArray[np.uint8]:
        """A tensor as it is stored, whatever its type: [..., bytes of a row]."""
        tensor = self.tensors[name]
        stored = self._bytes[tensor.start : tensor.start + tensor.n_bytes]
        return stored.reshape(*tensor.shape[:-1], -1)

    def _blocks(self, name: str, type_name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        tensor = self.tensors.get(name)
        if tensor is None or tensor.type.name != type_name or tensor.shape != shape:
            found = f"{tensor.type.name} {tensor.shape}" if tensor else "missing"
            raise ModelCorrupt(f"The tensor {name} is {found}, not {type_name} {shape}.")
        return self._bytes[tensor.start : tensor.start + tensor.n_bytes]


class _Header:
    """One pass over the bytes before the weights."""

    def __init__(self, file_name: str, data: NDArray[np.uint8]) -> None:
        self._file_name = file_name
        self._data = data.data
        self._position = 0

    def parse(self) -> tuple[dict[str, Value], dict[str, GgufTensor]]:
        if bytes(self._take(4)) != MAGIC:
            raise self._corrupt("it does not begin with GGUF")
        version = self._number("<I")
        if version not in VERSIONS:
            raise NotSupported(
                f"{self._file_name} is a GGUF file of the unknown version {version}."
            )
        n_tensors, n_pairs = self._number("<Q"), self._number("<Q")
        # The shortest entries there can be: a bound, so that no count makes a long loop.
        if n_tensors * 24 + n_pairs * 13 > len(self._data):
            raise self._corrupt("it counts more entries than it has room for")
        metadata: dict[str, Value] = {}
        for _ in range(n_pairs):
            key = self._string()
            if key in metadata:
                raise self._corrupt(f"{key!r} is set twice")
            metadata[key] = self._value(self._number("<I"))
        entries = [self._tensor_entry() for _ in range(n_tensors)]
        return metadata, self._placed(entries, self._alignment(metadata))

    def _corrupt(self, what: str) -> ModelCorrupt:
        return ModelCorrupt(f"{self._file_name} is not a sound GGUF file: {what}.")

    def _take(self, n_bytes: int) -> memoryview:
        end = self._position + n_bytes
        if end > len(self._data):
            raise self._corrupt("it ends before what it announces")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def _number(self, format_: str) -> int:
        value: int = struct.unpack(format_, self._take(struct.calcsize(format_)))[0]
        return value

    def _string(self) -> str:
        try:
            return str(self._take(self._number("<Q")), "utf-8")
        except UnicodeDecodeError as error:
            raise self._corrupt("it has a string that is not UTF-8") from error

    def _value(self, type_: int) -> Value:
        if type_ == _STRING:
            return self._string()
        if type_ == _ARRAY:
            item_type, count = self._number("<I"), self._number("<Q")
            if item_type == _STRING:
                if count * 8 > len(self._data) - self._position:
                    raise self._corrupt("an array is longer than the file")
                return [self._string() for _ in range(count)]
            return self._scalars(item_type, count)
        value: bool | int | float = self._scalars(type_, 1)[0].item()
        return value

    def _scalars(self, type_: int, count: int) -> NDArray[Any]:
        dtype = _SCALARS.get(type_)
        if dtype is None:
            raise self._corrupt(f"it has a value of the unknown type {type_}")
        raw = np.frombuffer(self._take(count * dtype.itemsize), np.uint8)
        if type_ == _BOOL and raw.size and raw.max() > 1:
            raise self._corrupt("a truth value is neither 0 nor 1")
        return raw.view(dtype)

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
            raise self._corrupt("its alignment is out of range")
        return alignment

    def _tensor_entry(self) -> tuple[str, BlockType, tuple[int, ...], int]:
        name = self._string()
        n_dimensions = self._number("<I")
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise self._corrupt(f"{name} has {n_dimensions} dimensions")
        dimensions = [self._number("<Q") for _ in range(n_dimensions)]
        type_ = self._number("<I")
        if type_ not in BLOCK_TYPES:
            raise NotSupported(f"{name} in {self._file_name} has the unknown type {type_}.")
        return name, BLOCK_TYPES[type_], tuple(reversed(dimensions)), self._number("<Q")

    def _placed(
        self, entries: list[tuple[str, BlockType, tuple[int, ...], int]], alignment: int
    ) -> dict[str, GgufTensor]:
        data_start = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, type_, shape, offset in entries:
            if name in tensors:
                raise self._corrupt(f"the tensor {name} comes twice")
            if shape[-1] % type_.weights or offset % alignment:
                raise self._corrupt(f"{name} does not fit its blocks")
            n_bytes = math.prod(shape) // type_.weights * type_.n_bytes
            if data_start + offset + n_bytes > len(self._data):
                raise self._corrupt(f"{name} reaches beyond the end of the file")
            tensors[name] = GgufTensor(type_, shape, data_start + offset, n_bytes)
        return tensors

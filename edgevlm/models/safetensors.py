"""Reading and writing safetensors files with numpy alone.

A safetensors file is eight bytes of header length, a JSON header that gives each
tensor a dtype, a shape and a byte range, then the bytes. The file comes from
elsewhere, so nothing in the header is believed before it was checked against the
size of the file (format: https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ModelCorrupt

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def _corrupt(path: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{path.name} is not a sound safetensors file: {what}.")


class SafetensorsFile:
    """The tensors of one file, read from a memory map when asked for.

    Raises ModelCorrupt where the header and the file disagree.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        if size < 8:
            raise _corrupt(path, "it is shorter than its header")
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > min(MAX_HEADER_BYTES, size - 8):
                raise _corrupt(path, "the header is longer than the file")
            try:
                header = json.loads(file.read(header_bytes))
            except (ValueError, RecursionError) as error:
                raise _corrupt(path, "the header is not JSON") from error
        if not isinstance(header, dict):
            raise _corrupt(path, "the header is not an object")
        header.pop("__metadata__", None)
        self._start = 8 + header_bytes
        self._tensors = {
            name: self._entry(name, entry, size - self._start) for name, entry in header.items()
        }
        self._bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")

    def _entry(self, name: str, entry: Any, data_bytes: int) -> tuple[str, tuple[int, ...], int]:
        try:
            dtype, shape = entry["dtype"], entry["shape"]
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise _corrupt(self.path, f"{name} has no dtype, shape or place") from error
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise _corrupt(self.path, f"{name} has the unknown dtype {dtype!r}")
        numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
        if len(numbers) > MAX_DIMENSIONS + 2 or not all(type(n) is int and n >= 0 for n in numbers):
            raise _corrupt(self.path, f"{name} has a shape or place that is not whole numbers")
        n_bytes = math.prod(shape) * _DTYPES[dtype].itemsize
        if begin + n_bytes != end or end > data_bytes:
            raise _corrupt(self.path, f"{name} does not fit its place in the file")
        return dtype, tuple(shape), begin

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def dtype(self, name: str) -> str:
        """As the format names it: F32, BF16."""
        return self._tensors[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1]

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, read-only where the file's own bytes serve; bfloat16 becomes float32."""
        dtype, shape, begin = self._tensors[name]
        n_bytes = math.prod(shape) * _DTYPES[dtype].itemsize
        start = self._start + begin
        flat: NDArray[Any] = self._bytes[start : start + n_bytes].view(_DTYPES[dtype])
        if dtype == "BF16":
            flat = (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return flat.reshape(shape)


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of the dtypes above; the same arrays give the same bytes. Raises OSError."""
    names = {dtype: name for name, dtype in _DTYPES.items() if name != "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        place = {"shape": list(array.shape), "data_offsets": [begin, end]}
        header[name] = {"dtype": names[array.dtype.newbyteorder("<")], **place}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # The tensors begin at a multiple of eight bytes.
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)

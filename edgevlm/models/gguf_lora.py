"""A LoRA as the GGUF file that llama.cpp adds to a decoder, with numpy alone.

The file is a header, typed pairs, a table of tensors and their bytes (specification: ggml's
docs/gguf.md); the names are those of llama.cpp's `convert_lora_to_gguf.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.models.gguf import DEFAULT_ALIGNMENT, MAGIC

_VERSION = 3
_UINT32, _FLOAT32, _STRING = 4, 6, 8
_TENSOR_TYPES = {"float32": 0, "float16": 1}


def write_lora_gguf(path: Path, architecture: str, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write `tensors`, float16 or float32, in their order.

    `NAME.lora_a` [rank, in] and `NAME.lora_b` [out, rank] belong to the decoder's tensor NAME
    [out, in], which becomes NAME + lora_b @ lora_a: alpha / rank is in them. The rows of
    queries and keys lie as the decoder's file has them. Raises OSError.
    """
    pairs: dict[str, str | int | float] = {
        "general.type": "adapter",
        "general.architecture": architecture,
        "general.alignment": DEFAULT_ALIGNMENT,
        "adapter.type": "lora",
        # No alpha: llama.cpp then scales by nothing of its own.
        "adapter.lora.alpha": 0.0,
    }
    header = MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(pairs))
    header += b"".join(_string(key) + _value(value) for key, value in pairs.items())
    offset = 0
    for name, array in tensors.items():
        sizes = array.shape[::-1]
        header += _string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        header += struct.pack("<IQ", _TENSOR_TYPES[array.dtype.name], offset)
        offset += array.nbytes + _padding(array.nbytes)
    with path.open("wb") as file:
        file.write(header + bytes(_padding(len(header))))
        for array in tensors.values():
            data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
            file.write(data + bytes(_padding(len(data))))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    return struct.pack("<If", _FLOAT32, value)


def _padding(n_bytes: int) -> int:
    return -n_bytes % DEFAULT_ALIGNMENT

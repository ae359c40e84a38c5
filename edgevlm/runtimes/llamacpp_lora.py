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

_MAGIC, _VERSION, _ALIGNMENT = b"GGUF", 3, 32
_UINT32, _FLOAT32, _STRING = 4, 6, 8
_TENSOR_TYPES = {"float32": 0, "float16": 1}
# A checkpoint's name of a product: llama.cpp's.
PRODUCTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class LoraGguf:
    """The file of `tensors`, float16 or float32.

    `NAME.lora_a` [rank, in] and `NAME.lora_b` [out, rank] belong to the decoder's tensor NAME
    [out, in], which becomes NAME + lora_b @ lora_a: alpha / rank is in them. The rows of
    queries and keys lie as the decoder's file has them.
    """

    def __init__(self, architecture: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = list(tensors.values())
        pairs: dict[str, str | int | float] = {
            "general.type": "adapter",
            "general.architecture": architecture,
            "general.alignment": _ALIGNMENT,
            "adapter.type": "lora",
            # No alpha: llama.cpp then scales by nothing of its own.
            "adapter.lora.alpha": 0.0,
        }
        header = _MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(pairs))
        header += b"".join(_string(key) + _value(value) for key, value in pairs.items())
        offset = 0
        for name, array in tensors.items():
            sizes = array.shape[::-1]
            header += _string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
            header += struct.pack("<IQ", _TENSOR_TYPES[array.dtype.name], offset)
            offset += array.nbytes + _padding(array.nbytes)
        self._header = header + bytes(_padding(len(header)))

    def write(self, path: Path) -> None:
        """The tensors in their order. Raises OSError."""
        with path.open("wb") as file:
            file.write(self._header)
            for array in self._arrays:
                little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
                file.write(little.data)
                file.write(bytes(_padding(little.nbytes)))


def product_tensor(module: str) -> str | None:
    """`blk.0.attn_q.weight` for `layers.0.self_attn.q_proj`; None for what is no product of
    a decoder layer."""
    match module.split(".", 2):
        case ["layers", layer, product] if product in PRODUCTS:
            return f"blk.{layer}.{PRODUCTS[product]}.weight"
    return None


def interleave(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Rows of queries or keys [heads * head_dim, ...] in the order of a GGUF file of `llama`.

    Its rotary embedding turns neighbours (RoFormer, arXiv:2104.09864), where a checkpoint of
    Hugging Face has the two of a pair half a head apart.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


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
    return -n_bytes % _ALIGNMENT

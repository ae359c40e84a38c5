"""Reading safetensors: what the reference library writes, and no more than is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from edgevlm.errors import ModelCorrupt
from edgevlm.models.safetensors import SafetensorsFile, write_safetensors


def test_reads_what_the_reference_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "f32": torch.randn(3, 5, generator=generator),
        "f16": torch.randn(4, generator=generator).half(),
        "bf16": torch.randn(2, 3, generator=generator).bfloat16(),
        "i64": torch.arange(6).reshape(2, 3),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(1.5),
    }
    save_file(tensors, path, {"format": "pt"})
    file = SafetensorsFile(path)
    assert set(file) == set(tensors)
    for name, tensor in tensors.items():
        wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(file.read(name), wide.numpy())
        assert file.read(name).shape == tuple(tensor.shape)


def written(header: Any, data: int = 64) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(data)


def entry(dtype: Any = "F32", shape: Any = (4,), place: Any = (0, 16)) -> dict[str, Any]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": place}}


LIES = {
    "short": b"\0" * 7,
    "header length": (2**60).to_bytes(8, "little") + b"{}",
    "not JSON": written(b"{"),
    "not an object": written([1]),
    "deep": written(b"[" * 100_000),
    "no fields": written({"t": {}}),
    "no entry": written({"t": 3}),
    "dtype": written(entry(dtype="F4")),
    "dtype list": written(entry(dtype=["F32"])),
    "shape": written(entry(shape="44")),
    "negative": written(entry(shape=(-4,))),
    "fraction": written(entry(shape=(4.0,))),
    "truth": written(entry(shape=(True, 4))),
    "one offset": written(entry(place=(0,))),
    "size": written(entry(place=(0, 20))),
    "beyond": written(entry(place=(60, 76))),
    "huge": written(entry(shape=(2**40, 2**40), place=(0, 2**82))),
    "many dimensions": written(entry(shape=(1,) * 50, place=(0, 4))),
}


@pytest.mark.parametrize("lie", LIES)
def test_refuses_lies(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "lie.safetensors"
    path.write_bytes(LIES[lie])
    with pytest.raises(ModelCorrupt, match="lie"):
        SafetensorsFile(path)


def test_the_lies_differ_from_the_truth(tmp_path: Path) -> None:
    path = tmp_path / "truth.safetensors"
    path.write_bytes(written(entry()))
    assert SafetensorsFile(path).read("t").tolist() == [0, 0, 0, 0]


def test_the_reference_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "words": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "halves": np.linspace(0, 1, 5, dtype=np.float16),
        "turned": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "big endian": np.arange(3, dtype=">i4"),
    }
    write_safetensors(path, tensors)
    found, own = load_file(path), SafetensorsFile(path)
    assert set(found) == set(own) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(own.read(name), array)
        assert found[name].dtype == array.dtype.newbyteorder("<")

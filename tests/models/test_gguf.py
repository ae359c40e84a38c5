"""GGUF reading: what the reference reader sees, and nothing from a file that lies."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.models.gguf import GgufFile

SHAPE = (6, 96)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A file with every kind of value and tensor that we read, from the reference writer."""
    path = tmp_path / "sound.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_bool("flag", True)
    writer.add_array("words", ["Ġa", "", "日本"])
    writer.add_array("types", [1, -3, 2])
    weights = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    writer.add_tensor("norm", weights[0])
    for name, type_ in (
        ("four", GGMLQuantizationType.Q4_1),
        ("eight", GGMLQuantizationType.Q8_0),
    ):
        writer.add_tensor(name, quantize(weights, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_the_reference_reads(sound: Path) -> None:
    file, reference = GgufFile(sound), GGUFReader(sound)
    expected = {f.name: f.contents() for f in reference.fields.values()}
    for key, value in file.metadata.items():
        found = value.tolist() if isinstance(value, np.ndarray) else value
        assert found == expected[key]
    assert {k for k in expected if not k.startswith("GGUF.")} == set(file.metadata)
    weights = {t.name: dequantize(t.data, t.tensor_type) for t in reference.tensors}
    assert set(file.tensors) == set(weights)
    scales, minima, levels = file.read_q4_1("four", SHAPE)
    four = scales.astype(np.float32)[..., None] * levels + minima.astype(np.float32)[..., None]
    np.testing.assert_array_equal(four.reshape(SHAPE), weights["four"])
    scales, signed = file.read_q8_0("eight", SHAPE)
    eight = scales.astype(np.float32)[..., None] * signed
    np.testing.assert_array_equal(eight.reshape(SHAPE), weights["eight"])
    np.testing.assert_array_equal(file.read_f32("norm", (96,)), weights["norm"])


@pytest.mark.parametrize(
    ("name", "shape"), [("absent", SHAPE), ("eight", SHAPE), ("four", (96, 6)), ("four", (6, 64))]
)
def test_refuses_a_tensor_that_is_not_as_asked(
    sound: Path, name: str, shape: tuple[int, int]
) -> None:
    with pytest.raises(ModelCorrupt, match=name):
        GgufFile(sound).read_q4_1(name, shape)


def test_refuses_every_truncation(sound: Path, tmp_path: Path) -> None:
    whole = sound.read_bytes()
    end = max(tensor.start + tensor.n_bytes for tensor in GgufFile(sound).tensors.values())
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 600, 7), end - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelCorrupt):
            GgufFile(cut)


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def pair(key: bytes, type_: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", type_) + value


def tensor(name: bytes, dims: tuple[int, ...], type_: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_, offset)


def gguf(
    *entries: bytes,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int = 0,
    n_pairs: int = 0,
    padding: int = 4096,
) -> bytes:
    head = magic + struct.pack("<IQQ", version, n_tensors, n_pairs)
    return head + b"".join(entries) + bytes(padding)


LIES = {
    "magic": gguf(magic=b"GGML"),
    "tensor count": gguf(n_tensors=2**63),
    "pair count": gguf(n_pairs=2**62),
    "key length": gguf(string(b"", 2**64 - 1), n_pairs=1),
    "string length": gguf(pair(b"a", 8, string(b"b", 2**40)), n_pairs=1),
    "not UTF-8": gguf(pair(b"a", 8, string(b"\xff\xfe")), n_pairs=1),
    "value type": gguf(pair(b"a", 99, b""), n_pairs=1),
    "bool": gguf(pair(b"a", 7, b"\x02"), n_pairs=1),
    "array length": gguf(pair(b"a", 9, struct.pack("<IQ", 4, 2**61)), n_pairs=1),
    "array of strings": gguf(pair(b"a", 9, struct.pack("<IQ", 8, 2**50)), n_pairs=1),
    "nested array": gguf(pair(b"a", 9, struct.pack("<IQ", 9, 1)), n_pairs=1),
    "key twice": gguf(pair(b"a", 0, b"1"), pair(b"a", 0, b"1"), n_pairs=2),
    "alignment": gguf(pair(b"general.alignment", 4, struct.pack("<I", 0)), n_pairs=1),
    "alignment type": gguf(pair(b"general.alignment", 8, string(b"32")), n_pairs=1),
    "dimension count": gguf(tensor(b"t", (1,) * 5, 0, 0), n_tensors=1),
    "size": gguf(tensor(b"t", (2**62, 2**62), 0, 0), n_tensors=1),
    "offset": gguf(tensor(b"t", (4,), 0, 2**40), n_tensors=1),
    "offset not aligned": gguf(tensor(b"t", (4,), 0, 8), n_tensors=1),
    "part of a block": gguf(tensor(b"t", (33,), 3, 0), n_tensors=1),
    "tensor twice": gguf(tensor(b"t", (4,), 0, 0), tensor(b"t", (4,), 0, 32), n_tensors=2),
}


@pytest.mark.parametrize("lie", LIES)
def test_refuses_lies(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(LIES[lie])
    with pytest.raises(ModelCorrupt):
        GgufFile(path)


def test_the_lies_are_told_to_a_reader_that_would_believe_the_truth(tmp_path: Path) -> None:
    path = tmp_path / "truth.gguf"
    path.write_bytes(
        gguf(pair(b"a", 7, b"\x01"), tensor(b"t", (4,), 0, 32), n_tensors=1, n_pairs=1)
    )
    file = GgufFile(path)
    assert file.metadata["a"] is True
    assert file.read_f32("t", (4,)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "strange", [gguf(version=7), gguf(tensor(b"t", (256,), 99, 0), n_tensors=1)]
)
def test_says_what_it_does_not_know(tmp_path: Path, strange: bytes) -> None:
    path = tmp_path / "strange.gguf"
    path.write_bytes(strange)
    with pytest.raises(NotSupported, match="unknown"):
        GgufFile(path)

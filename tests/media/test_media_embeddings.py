"""Embeddings that come from elsewhere: read by hand, never unpickled, or a MediaError."""

from __future__ import annotations

import base64
import io
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import UnreadableMedia
from edgevlm.media.embeddings import pack_embeddings, unpack_embeddings

D_MODEL = 48
ROWS = np.random.default_rng(0).normal(size=(7, D_MODEL)).astype(np.float32)


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0), pickled: bool = False) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version, allow_pickle=pickled)
    return out.getvalue()


def with_header(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + body


def header(descr: str = "'<f4'", order: str = "False", shape: str = f"(1, {D_MODEL})") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


BODY = bytes(4 * D_MODEL)


def read(data: bytes) -> Any:
    return unpack_embeddings(base64.b64encode(data).decode(), D_MODEL)


def test_what_is_packed_comes_back() -> None:
    assert np.array_equal(unpack_embeddings(pack_embeddings(ROWS), D_MODEL), ROWS)


def test_numpys_own_files_are_read() -> None:
    assert np.array_equal(read(npy(ROWS)), ROWS)
    half = read(npy(ROWS.astype(np.float16)))
    assert half.dtype == np.float32
    assert np.array_equal(half, ROWS.astype(np.float16).astype(np.float32))


def test_rows_are_memory_of_their_own() -> None:
    rows = read(npy(ROWS))
    rows[:] = 0
    assert rows.flags.c_contiguous
    assert rows.flags.writeable


class Canary:
    """What is unpickled as it leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self._file,))


@pytest.mark.parametrize("form", ["npy", "npy as float", "pickle", "torch", "numpy's pickle"])
def test_nothing_is_ever_unpickled(tmp_path: Path, form: str) -> None:
    file = tmp_path / "canary"
    out = io.BytesIO()
    if form.startswith("npy"):
        data = npy(np.array([[Canary(file)] * D_MODEL], dtype=object), pickled=True)
        if form == "npy as float":
            data = with_header(header(), data[128:].ljust(4 * D_MODEL, b"\0"))
    elif form == "torch":
        import torch

        torch.save({"rows": torch.zeros(1, D_MODEL), "canary": Canary(file)}, out)
        data = out.getvalue()
    else:
        data = pickle.dumps(Canary(file) if form == "pickle" else [Canary(file), ROWS])
    if form != "npy as float" or len(data) != len(with_header(header(), BODY)):
        with pytest.raises(UnreadableMedia):
            read(data)
    assert not file.exists()


@pytest.mark.parametrize(
    "array",
    [
        ROWS.astype(np.float64),
        ROWS.astype(">f4"),
        ROWS.astype(">f2"),
        ROWS.astype(np.int32),
        ROWS.astype(np.uint8),
        ROWS.astype(np.complex64),
        ROWS.astype("S4"),
        ROWS.astype("U4"),
        ROWS.astype("M8[s]"),
        ROWS > 0,
        ROWS.view([("x", "<f4")]),
        ROWS[0],
        ROWS[None],
        ROWS[:, :-1],
        ROWS.T,
        ROWS[:0],
        ROWS[:, :0],
        np.float32(1).reshape(()),
        np.asfortranarray(ROWS),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_other_shapes_and_types_are_refused(array: np.ndarray) -> None:
    with pytest.raises(UnreadableMedia) as refused:
        read(npy(array))
    assert f"[n_tokens, {D_MODEL}]" in (refused.value.hint or "")


@pytest.mark.parametrize("version", [(2, 0), (3, 0)])
def test_other_versions_are_refused(version: tuple[int, int]) -> None:
    with pytest.raises(UnreadableMedia, match=r"version 1\.0"):
        read(npy(ROWS, version))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e5, -3e38])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_numbers_that_no_decoder_bears_are_refused(value: float, kind: Any) -> None:
    rows = ROWS.copy()
    rows[3, 5] = value
    with np.errstate(over="ignore"), pytest.raises(UnreadableMedia, match="not finite"):
        read(npy(rows.astype(kind)))


@pytest.mark.parametrize(
    "shape",
    [
        f"(65536, {D_MODEL})",
        f"(65537, {D_MODEL})",
        f"({10**15}, {D_MODEL})",
        f"({2**63}, {D_MODEL})",
        f"({10**400}, {D_MODEL})",
        f"(0x{'f' * 8000}, {D_MODEL})",
        f"(-1, {D_MODEL})",
        f"(0, {D_MODEL})",
        f"(2, {D_MODEL})",
        f"(True, {D_MODEL})",
        f"(1.0, {D_MODEL})",
        f"('1', {D_MODEL})",
        "()",
        "(1,)" * 100,
        "(" + "1, " * 3000 + ")",
        "(" * 200 + ")" * 200,
        "[1, 48]",
        "None",
        "1",
    ],
    ids=lambda shape: shape[:20],
)
def test_shapes_that_are_a_lie_cost_nothing(shape: str) -> None:
    data = with_header(header(shape=shape), BODY[:-1])
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableMedia) as refused:
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "text",
    [
        header(descr="'|O'"),
        header(descr="'O'"),
        header(descr="'<f4,<f4'"),
        header(descr="[('a', '<f4')]"),
        header(descr="[('a', '|O')]"),
        header(descr="[" * 100 + "]" * 100),
        header(descr="'V1000000000'"),
        header(descr="'<f4' * 1000000000"),
        header(descr="__import__('os').system('touch canary')"),
        header(descr="5"),
        header(descr="None"),
        header(descr="'\\ud800'"),
        header(order="1"),
        header(order="True"),
        header(order="'False'"),
        header().replace("'shape'", "'form'"),
        header().replace("}", ", 'more': 1}"),
        header(shape=f"(1L, {D_MODEL}L)"),
        "",
        "{}",
        "[]",
        "5",
        "(" * 5000,
        "-" * 9000 + "1",
        "{" * 9000,
        "'" + "a" * 9000,
        "\0" * 100,
        "x" * 60_000,
        header() + " " * 20_000,
    ],
    ids=lambda text: repr(text[:40]),
)
def test_headers_that_are_not_numpys(text: str) -> None:
    with pytest.raises(UnreadableMedia) as refused:
        read(with_header(text, BODY))
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("body", [b"", BODY[:-1], BODY + b"\0", BODY * 2])
def test_more_or_fewer_bytes_than_the_shape_says(body: bytes) -> None:
    with pytest.raises(UnreadableMedia, match="bytes of numbers"):
        read(with_header(header(), body))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93",
        b"\x93NUMPY",
        b"\x93NUMPY\x01",
        b"\x93NUMPY\x01\x00\xff",
        b"PK\x03\x04",
        b"x" * 99,
    ],
)
def test_what_is_no_file_of_numpys(data: bytes) -> None:
    with pytest.raises(UnreadableMedia, match="npy"):
        read(data)


@pytest.mark.parametrize(
    "text", ["=", "A", "AAA", "A A=", "AAAA\n", "é", "\0", "!!!!", "AA==AA==", "-_-_"]
)
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(UnreadableMedia):
        unpack_embeddings(text, D_MODEL)

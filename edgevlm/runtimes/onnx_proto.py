"""The wire format of protocol buffers (protobuf.dev/programming-guides/encoding), as far as
ONNX files use it: enough to find the fields of a message and to write some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Data(Protocol):
    """bytes, or a file mapped into memory."""

    def __getitem__(self, at: slice, /) -> bytes: ...


class Field(NamedTuple):
    """`value` is that of an integer. The content lies from `begin` to `end`, the whole field
    with its number and length from `start` to `end`."""

    number: int
    value: int
    start: int
    begin: int
    end: int


def fields(data: Data, begin: int, end: int) -> Iterator[Field]:
    """The fields of the message from `begin` to `end`. Raises ValueError where it is none."""
    at = begin
    while at < end:
        start = at
        tag, at = _read_varint(data, at, end)
        kind, value, size = tag & 7, 0, 0
        content = at
        if kind == _VARINT:
            value, at = _read_varint(data, at, end)
        elif kind == _BYTES:
            size, content = _read_varint(data, at, end)
            at = content + size
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if at > end:
            raise ValueError("a field ends outside of its message")
        yield Field(tag >> 3, value, start, content, at)


def integers(data: Data, field: Field) -> list[int]:
    """Those of a repeated field, one by one or packed. Raises ValueError."""
    found, at = [], field.begin
    while at < field.end:
        value, at = _read_varint(data, at, field.end)
        found.append(value)
    return found


def integer(number: int, value: int) -> bytes:
    """A field that holds an integer >= 0."""
    return _varint(number << 3 | _VARINT) + _varint(value)


def content(number: int, *parts: bytes | str) -> bytes:
    """A field that holds a message, a text or bytes."""
    joined = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return header(number, len(joined)) + joined


def header(number: int, size: int) -> bytes:
    """What stands before `size` bytes of content."""
    return _varint(number << 3 | _BYTES) + _varint(size)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: Data, at: int, end: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[at : min(at + 10, end)]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number without an end")

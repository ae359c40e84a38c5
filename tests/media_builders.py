"""Picture files for tests: made by Pillow where it can, byte by byte where it would refuse."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def noise(width: int = 56, height: int = 40, channels: int = 4, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    size: tuple[int, int],
    rows: bytes,
    *,
    depth: int = 8,
    colour: int = 2,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG of unfiltered `rows` (each begins with a 0), with chunks before and after them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + after + chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[int, int, int]], body: bytes = b"") -> bytes:
    """A little-endian TIFF; `tags` maps a tag to type, count and value, `body` starts at 512."""
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(512, b"\0") + body


def tiff_tags(size: tuple[int, int], bits: int = 8, **more: Any) -> dict[int, Any]:
    """Tags of uncompressed grey whose one strip starts at 512."""
    width, height = size
    length = (width * bits + 7) // 8 * height
    return {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, bits),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 512),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, length),
    } | more


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = encoded(Image.new("L", (32, 32), 90), "JPEG", progressive=True)
    last = [found.start() for found in re.finditer(b"\xff\xda", data)][-1]
    return data[:-2] + data[last:-2] * scans + data[-2:]


def gif(canvas: tuple[int, int], frame: tuple[int, int, int, int], indices: bytes) -> bytes:
    """A GIF of red (0) and blue (1) with one frame (x, y, width, height) of 2-bit codes."""
    palette = b"\xff\0\0\0\0\xff" + b"\0\xff\0" * 2
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", *canvas, 0x81, 0, 0)
        + palette
        + b","
        + struct.pack("<HHHHB", *frame, 0)
        + b"\x02"
        + _uncompressed_lzw(indices)
        + b"\0;"
    )


def _uncompressed_lzw(indices: bytes) -> bytes:
    # A clear code before every second index keeps all codes at 3 bits.
    codes = [code for index in indices for code in (4, index)] + [5]
    bits = sum(code << 3 * position for position, code in enumerate(codes))
    packed = bits.to_bytes((3 * len(codes) + 7) // 8, "little")
    return bytes([len(packed)]) + packed

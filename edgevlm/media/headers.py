"""What the first bytes of a picture say, read before a decoder allocates anything.

The format is decided here, by content alone. The checks are for files whose
few bytes cost a decoder hours or gigabytes before it could notice.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

from edgevlm.errors import MediaTooLarge
from edgevlm.media.limits import MediaLimits

# Encoders write at most about 12 scans; each costs a pass over all pixels.
MAX_JPEG_SCANS = 100
MAX_PNG_CHUNKS = 100_000
# One strip for every row of a tall picture is usual.
MAX_TIFF_STRIPS = 65_536

_TIFF_STRIP_OFFSETS = 273
_TIFF_TILE_OFFSETS = 324

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
)
# "BM" alone begins many a text, so the size of the second header is looked at too.
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)


def image_format(data: bytes) -> str | None:
    """The Pillow name of the format `data` is in, None if it is none we take."""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    return None


def check_cost(data: bytes, format_name: str, limits: MediaLimits, name: str) -> None:
    """Raise MediaTooLarge for a file made to cost more than its pixels do.

    Broken headers pass: the decoder says better what is wrong with them.
    """
    check = _CHECKS.get(format_name)
    if check is not None:
        check(data, limits, name)


def _check_gif(data: bytes, limits: MediaLimits, name: str) -> None:
    if len(data) >= 10:
        width, height = struct.unpack_from("<HH", data, 6)
        limits.check_pixels((width, height), name)


def _check_webp(data: bytes, limits: MediaLimits, name: str) -> None:
    if len(data) < 30:
        return
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    limits.check_pixels((width, height), name)


def _check_jpeg(data: bytes, limits: MediaLimits, name: str) -> None:
    scans = sum(marker == 0xDA for marker in _jpeg_markers(data))
    if scans > MAX_JPEG_SCANS:
        raise _overloaded(name, f"a JPEG of {scans} scans")


def _jpeg_markers(data: bytes) -> Iterator[int]:
    # FF 00 is a stuffed byte of coded data, D0 to D7 are restarts inside it.
    marker = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
    position = 2
    while (found := marker.search(data, position)) is not None:
        code = found[1][0]
        if code == 0xD9:
            return
        yield code
        has_length = code not in (0x01, 0xD8)
        length = int.from_bytes(data[found.end() : found.end() + 2], "big") if has_length else 0
        position = found.end() + length


def _check_png(data: bytes, limits: MediaLimits, name: str) -> None:
    position, chunks, profiles = 8, 0, 0
    while position + 8 <= len(data):
        chunks += 1
        # Each profile may swell a thousandfold, and only the last would be used.
        profiles += data[position + 4 : position + 8] == b"iCCP"
        if chunks > MAX_PNG_CHUNKS or profiles > 1:
            raise _overloaded(name, "a PNG of too many chunks")
        position += 12 + int.from_bytes(data[position : position + 4], "big")


def _check_tiff(data: bytes, limits: MediaLimits, name: str) -> None:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:3] == b"+"
    offset_at, offset_type, count_type, entry = (8, "Q", "Q", 20) if big else (4, "L", "H", 12)
    try:
        (start,) = struct.unpack_from(order + offset_type, data, offset_at)
        (entries,) = struct.unpack_from(order + count_type, data, start)
        first = start + struct.calcsize(order + count_type)
        for position in range(first, first + entries * entry, entry):
            tag, _, count = struct.unpack_from(order + "HH" + offset_type, data, position)
            if tag in (_TIFF_STRIP_OFFSETS, _TIFF_TILE_OFFSETS) and count > MAX_TIFF_STRIPS:
                raise _overloaded(name, f"a TIFF of {count} strips")
    except (struct.error, OverflowError):
        return


def _overloaded(name: str, what: str) -> MediaTooLarge:
    return MediaTooLarge(f"{name} is {what}.", hint="Open it in an editor and save it again.")


_CHECKS: dict[str, Callable[[bytes, MediaLimits, str], None]] = {
    "GIF": _check_gif,
    "JPEG": _check_jpeg,
    "PNG": _check_png,
    "TIFF": _check_tiff,
    "WEBP": _check_webp,
}

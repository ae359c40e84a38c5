"""Files made to cost more than they should, and files that are broken."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_builders import (
    chunk,
    encoded,
    gif,
    jpeg_of_scans,
    noise,
    png,
    tiff,
    tiff_tags,
)
from PIL import Image, ImageCms, ImageFile

from edgevlm.errors import MediaError, MediaTooLarge, UnreadableMedia
from edgevlm.media import MediaLimits
from edgevlm.media.headers import MAX_JPEG_SCANS, MAX_PNG_CHUNKS, MAX_TIFF_STRIPS
from edgevlm.media.image import decode


def _huge_bmp() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (2, 2)), "BMP"))
    data[18:26] = struct.pack("<ii", 20_000, 15_000)
    return bytes(data)


def _huge_jpeg() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 15_000, 20_000)
    return bytes(data)


def _huge_webp(kind: str) -> bytes:
    image = Image.new("RGBA", (8, 8), (1, 2, 3, 4)) if kind == "VP8X" else Image.new("RGB", (8, 8))
    data = bytearray(encoded(image, "WEBP", lossless=kind == "VP8L"))
    assert data[12:16].strip() == kind.encode()
    if kind == "VP8X":
        data[24:30] = (11_999).to_bytes(3, "little") * 2
    elif kind == "VP8L":
        data[21:25] = (11_999 | 11_999 << 14).to_bytes(4, "little")
    else:
        data[26:30] = struct.pack("<HH", 12_000, 12_000)
    return bytes(data)


HUGE: dict[str, Callable[[], bytes]] = {
    "png": lambda: png((20_000, 15_000), zlib.compress(bytes(100))),
    "jpeg": _huge_jpeg,
    "gif": lambda: gif((20_000, 15_000), (0, 0, 1, 1), b"\0"),
    "gif frame": lambda: gif((1, 1), (0, 0, 60_000, 60_000), b"\0"),
    "bmp": _huge_bmp,
    "tiff": lambda: tiff(tiff_tags((20_000, 15_000)), bytes(10)),
    "webp": lambda: _huge_webp("VP8"),
    "webp lossless": lambda: _huge_webp("VP8L"),
    "webp alpha": lambda: _huge_webp("VP8X"),
}


@pytest.mark.parametrize("kind", HUGE)
def test_huge_pictures_are_refused(kind: str) -> None:
    with pytest.raises(MediaTooLarge) as caught:
        decode(HUGE[kind]())
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("policy", ["error", "ignore"])
def test_the_limit_is_ours_not_pillows(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("1", (9_500, 9_500)), "PNG")  # where Pillow only warns
    with warnings.catch_warnings():
        warnings.simplefilter(policy)
        with pytest.raises(MediaTooLarge, match="9500 x 9500 pixels, over the limit of 40 million"):
            decode(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(encoded(Image.new("RGB", (10, 10)), "PNG")).shape == (10, 10, 3)


def test_decoding_leaves_the_state_of_the_process_alone() -> None:
    def state() -> tuple[Any, ...]:
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)

    before = state()
    for data in (*SAMPLES.values(), HUGE["png"](), b""):
        _outcome(data)
        assert state() == before


def test_the_limit_itself_is_allowed() -> None:
    data = encoded(Image.new("RGB", (10, 10)), "PNG")
    assert decode(data, MediaLimits(max_pixels=100)).shape == (10, 10, 3)
    with pytest.raises(MediaTooLarge):
        decode(data, MediaLimits(max_pixels=99))
    assert decode(data, MediaLimits(max_bytes=len(data))).shape == (10, 10, 3)
    with pytest.raises(MediaTooLarge):
        decode(data, MediaLimits(max_bytes=len(data) - 1))


PIXEL = b"\0\1\2\3"


def _bomb(count: int = 64 * 2**20) -> bytes:
    return zlib.compress(bytes(count), 9)


METADATA_BOMBS = {
    "zTXt": png((1, 1), PIXEL, before=chunk(b"zTXt", b"k\0\0" + _bomb())),
    "zTXt behind": png((1, 1), PIXEL, after=chunk(b"zTXt", b"k\0\0" + _bomb())),
    "iTXt": png((1, 1), PIXEL, before=chunk(b"iTXt", b"k\0\1\0\0\0" + _bomb())),
    "iCCP": png((1, 1), PIXEL, before=chunk(b"iCCP", b"k\0\0" + _bomb())),
}
COSTLY = {
    "profiles": png((1, 1), PIXEL, before=chunk(b"iCCP", b"k\0\0" + _bomb(2**19)) * 2),
    "chunks": png((1, 1), PIXEL, before=chunk(b"prVt", b"") * (MAX_PNG_CHUNKS + 1)),
    "scans": jpeg_of_scans(MAX_JPEG_SCANS + 1),
    "strips": tiff(tiff_tags((64, 64)) | {273: (4, MAX_TIFF_STRIPS + 1, 512)}, bytes(300_000)),
    "tiles": tiff(tiff_tags((64, 64)) | {324: (4, 2**31, 512)}, bytes(64)),
    "tile": tiff(
        tiff_tags((100, 100))
        | {259: (3, 1, 5), 322: (4, 1, 40_000), 323: (4, 1, 40_000)}
        | {324: (4, 1, 512), 325: (4, 1, 400)},
        b"\x80\0\0\xff" * 100,
    ),
}


@pytest.mark.parametrize("kind", METADATA_BOMBS)
def test_metadata_that_swells_is_refused(kind: str) -> None:
    with pytest.raises(MediaError):
        decode(METADATA_BOMBS[kind])


@pytest.mark.parametrize("kind", COSTLY)
def test_files_that_would_cost_more_than_their_pixels_are_refused(kind: str) -> None:
    with pytest.raises(MediaTooLarge):
        decode(COSTLY[kind])


def test_refusing_takes_no_memory(tmp_path: Path) -> None:
    files = {kind: build() for kind, build in HUGE.items()} | METADATA_BOMBS | COSTLY
    for position, data in enumerate(files.values()):
        (tmp_path / f"{position}").write_bytes(data)
    (tmp_path / "small").write_bytes(SAMPLES["png"])
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # The least that one of the pictures would take is a byte a pixel, 144 MB.
    assert int(done.stdout) < 100e6


_MEASURE = """
import sys
from pathlib import Path
from edgevlm.devices.memory import peak_rss_bytes
from edgevlm.errors import MediaError
from edgevlm.media.image import decode
folder = Path(sys.argv[1])
for warm in range(2):  # the second round has all modules loaded
    decode((folder / "small").read_bytes())
before = peak_rss_bytes()
for path in folder.iterdir():
    try:
        decode(path.read_bytes())
    except MediaError:
        pass
print(peak_rss_bytes() - before)
"""


def test_ordinary_files_are_far_from_those_guards() -> None:
    assert decode(jpeg_of_scans(20)).shape == (32, 32, 3)
    many = png((1, 1), PIXEL, before=chunk(b"tEXt", b"key\0value") * 1000)
    assert decode(many).shape == (1, 1, 3)
    rows = Image.new("L", (8, 5000))
    assert decode(encoded(rows, "TIFF", tiffinfo={278: 1})).shape == (5000, 8, 3)


@pytest.mark.parametrize(
    "tags",
    [
        {273: (4, 1, 2**32 - 1)},
        {279: (4, 1, 2**32 - 1)},
        {277: (3, 1, 65535)},
        {258: (3, 60000, 512)},
        {256: (2, 1, 8)},
        {257: (4, 1, 0)},
        {259: (3, 1, 7)},
        {322: (3, 1, 0), 323: (3, 1, 0), 324: (4, 1, 512)},
        {330: (4, 1, 8)},
        {34665: (4, 1, 8)},
    ],
)
def test_a_tiff_with_lying_tags(tags: dict[int, tuple[int, int, int]]) -> None:
    outcome = _outcome(tiff(tiff_tags((8, 8)) | tags, bytes(64)))
    assert isinstance(outcome, MediaError) or outcome.shape == (8, 8, 3)


def test_a_gif_that_lies_about_its_size() -> None:
    assert decode(gif((1, 1), (1, 0, 2, 1), b"\1\1")).shape == (1, 3, 3)
    with pytest.raises(UnreadableMedia):
        decode(gif((0, 0), (0, 0, 0, 0), b""))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_unreadable(format_name: str) -> None:
    data = encoded(noise(channels=3), format_name)
    with pytest.raises(UnreadableMedia) as caught:
        decode(data[: len(data) // 2], name="cut.jpg")
    assert caught.value.message.startswith(f"cut.jpg is a {format_name} that can't be decoded: ")
    assert caught.value.hint
    assert caught.value.__cause__ is not None


FOREIGN = {
    b"hello, this is my holiday picture\n": "text",
    "ein schöner Tag".encode(): "text",
    ("ä" * 3000).encode()[1:-1].decode("utf-8", "ignore").encode(): "text",
    b"BMW drives past": "text",
    b"<!DOCTYPE html><html>": "a web page",
    b"\n <html>": "a web page",
    b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>': "an SVG drawing",
    b"\0\0\0\x18ftypheic": "HEIC",
    b"\0\0\0\x18ftypavif": "AVIF",
    b"\0\0\0\x18ftypisom": "a video",
    b"RIFF\0\0\0\0AVI LIST": "a video",
    b"%PDF-1.7": "a PDF",
    b"%!PS-Adobe-3.0 EPSF": "PostScript",
    b"8BPS\0\1": "a Photoshop file",
    b"\0\0\1\0\1\0": "an icon file",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"PK\3\4": "a zip archive",
}


@pytest.mark.parametrize("data", FOREIGN, ids=FOREIGN.values())
def test_foreign_bytes_are_named(data: bytes) -> None:
    with pytest.raises(UnreadableMedia) as caught:
        decode(data, name="holiday.jpg")
    assert caught.value.message == f"holiday.jpg is {FOREIGN[data]}, not {_FORMATS}."
    assert caught.value.hint


_FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"


def test_unknown_and_empty_bytes() -> None:
    with pytest.raises(UnreadableMedia, match="is not a picture we can read"):
        decode(bytes(range(256)))
    with pytest.raises(UnreadableMedia, match="is empty"):
        decode(b"")


@pytest.mark.parametrize("format_name", ["ICO", "PPM", "TGA", "PCX", "SGI", "JPEG2000"])
def test_formats_that_pillow_would_read_and_we_do_not(format_name: str) -> None:
    with pytest.raises(UnreadableMedia):
        decode(encoded(Image.new("RGB", (16, 16)), format_name))


def _samples() -> dict[str, bytes]:
    rgba, rgb = noise(), noise(channels=3)
    palette = rgb.quantize(16)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    more = {
        "exif": exif,
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }
    frames = {"save_all": True, "append_images": [rgb.rotate(90)]}
    deep = np.random.default_rng(0).integers(0, 65536, (40, 56), np.uint16)
    return {
        "jpeg": encoded(rgb, "JPEG", **more),
        "jpeg progressive": encoded(rgb, "JPEG", progressive=True),
        "jpeg cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "png": encoded(rgba, "PNG", **more),
        "png 16": encoded(Image.fromarray(deep), "PNG"),
        "png palette": encoded(palette, "PNG", transparency=bytes(16)),
        "png animated": encoded(rgb, "PNG", **frames),
        "gif": encoded(palette, "GIF", transparency=3),
        "gif animated": encoded(rgb, "GIF", **frames),
        "bmp": encoded(rgb, "BMP"),
        "bmp 1": encoded(rgb.convert("1"), "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "tiff": encoded(rgb, "TIFF", exif=exif),
        "tiff lzw": encoded(rgba, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encoded(rgb, "TIFF", compression="jpeg"),
        "tiff group4": encoded(rgb.convert("1"), "TIFF", compression="group4"),
        "tiff float": encoded(Image.fromarray(deep.astype(np.float32)), "TIFF"),
        "tiff 32": encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        "webp": encoded(rgba, "WEBP", **more),
        "webp lossless": encoded(rgba, "WEBP", lossless=True),
        "webp animated": encoded(rgb, "WEBP", **frames),
    }


SAMPLES = _samples()


@pytest.mark.parametrize("policy", ["error", "ignore"])
@pytest.mark.parametrize("kind", SAMPLES)
def test_damaged_files_are_a_picture_or_a_media_error(kind: str, policy: str) -> None:
    chance = random.Random(f"{kind} {policy}")
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter(policy)
        for _ in range(150):
            outcome = _outcome(_damaged(SAMPLES[kind], chance))
            if isinstance(outcome, MediaError):
                refused += 1
                assert "\n" not in outcome.message
                assert len(outcome.message) < 200
                assert outcome.hint
            else:
                assert outcome.dtype == np.uint8
                assert outcome.ndim == 3
                assert outcome.shape[2] == 3
                assert outcome.size
    assert refused


def _outcome(data: bytes) -> MediaError | np.ndarray[Any, Any]:
    try:
        return decode(data)
    except MediaError as error:
        return error


def _damaged(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    kind = chance.randrange(4)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    if kind == 1:
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == 2:
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(min(200, len(data)))
            damaged[place] = chance.choice((0, 1, 127, 128, 255))
    else:
        place = chance.randrange(len(data))
        damaged[place : place + chance.randrange(20)] = chance.randbytes(chance.randrange(20))
    return bytes(damaged)

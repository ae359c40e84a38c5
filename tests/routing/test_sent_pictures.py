"""What a provider gets of a picture is its pixels and nothing else of its file."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cloud_parts import MakeCloud
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin
from provider_server import ProviderServer, answers

from edgevlm.media import load_image
from edgevlm.messages import Message
from edgevlm.routing.pictures import rebuild

SECRET = "TAGGED-in-Lisbon"
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF")


def tagged(format_name: str, seed: int) -> bytes:
    """A picture with every tag that its format holds, and `SECRET` in each."""
    generator = np.random.default_rng(seed)
    size = (int(generator.integers(40, 90)), int(generator.integers(40, 90)), 3)
    smooth = np.cumsum(generator.integers(-3, 4, size), axis=0) + generator.integers(60, 200)
    image = Image.fromarray(np.clip(smooth, 0, 255).astype(np.uint8))
    exif = image.getexif()
    exif[ExifTags.Base.Make] = SECRET
    exif[ExifTags.Base.Orientation] = int(generator.integers(1, 9))
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = SECRET.encode()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (38.0, 43.0, 0.0)
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSAreaInformation] = SECRET.encode()
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{SECRET}</x:xmpmeta>".encode()
    options = {
        "JPEG": {"comment": SECRET, "xmp": xmp},
        "PNG": {"pnginfo": _png_texts(), "xmp": xmp},
        "WEBP": {"xmp": xmp},
        "TIFF": {"tiffinfo": _tiff_tags()},
        "GIF": {"comment": SECRET},
    }[format_name]
    file = io.BytesIO()
    carried = {} if format_name == "GIF" else {"icc_profile": bytes(profile)}
    if format_name in ("JPEG", "PNG", "WEBP"):
        carried["exif"] = exif.tobytes()
    image.save(file, format_name, **options, **carried)
    return _with_thumbnail(file.getvalue()) if format_name == "JPEG" else file.getvalue()


def _png_texts() -> PngImagePlugin.PngInfo:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", SECRET)
    texts.add_itxt("Description", SECRET)
    texts.add_text("Author", SECRET, zip=True)
    return texts


def _tiff_tags() -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = SECRET
    tags[315] = SECRET
    return tags


def _with_thumbnail(jpeg: bytes) -> bytes:
    """JFIF's own extension segment with a thumbnail, JFXX, and Photoshop's resources."""
    thumbnail = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(thumbnail, "JPEG", comment=SECRET)
    segments = b""
    for marker, body in (
        (b"\xff\xe0", b"JFXX\0\x10" + thumbnail.getvalue()),
        (b"\xff\xed", b"Photoshop 3.0\0" + SECRET.encode()),
    ):
        segments += marker + struct.pack(">H", len(body) + 2) + body
    return jpeg[:2] + segments + jpeg[2:] + SECRET.encode()


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment before the scan."""
    assert data[:2] == b"\xff\xd8"
    at = 2
    while data[at + 1] != 0xDA:
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        yield data[at + 1], data[at + 4 : at + 2 + length]
        at += 2 + length
    assert data.endswith(b"\xff\xd9")


def png_chunks(data: bytes) -> Iterator[bytes]:
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8]
        at += 12 + length
    assert at == len(data)


def assert_untagged(data: bytes) -> None:
    if data.startswith(b"\x89PNG"):
        assert set(png_chunks(data)) <= {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
        return
    for marker, body in jpeg_segments(data):
        # JFIF's header without a thumbnail, tables, and the frame.
        assert marker in (0xE0, 0xDB, 0xC0, 0xC4)
        assert marker != 0xE0 or (body[:5] == b"JFIF\0" and len(body) == 14)


def test_a_hundred_tagged_pictures_arrive_without_a_tag(
    make_cloud: MakeCloud, tmp_path: Path
) -> None:
    files = [tagged(FORMATS[n % len(FORMATS)], seed=n) for n in range(100)]
    assert all(SECRET.encode() in file for file in files)
    with ProviderServer(answers("A wall.")) as server:
        cloud = make_cloud(server.url)
        for n, file in enumerate(files):
            path = tmp_path / f"{SECRET}-{n}"
            path.write_bytes(file)
            cloud.ask([Message("user", "What is this?", (load_image(path),))])
        pictures, bodies = server.pictures(), [body for _, _, body in server.requests]
    assert len(pictures) == 100
    for picture in pictures:
        assert SECRET.encode() not in picture
        assert_untagged(picture)
    assert not any(SECRET.encode() in body for body in bodies)


def decoded(data: bytes) -> NDArray[np.uint8]:
    return load_image(data)


def test_a_drawing_arrives_exactly() -> None:
    pixels = np.full((50, 70, 3), 255, np.uint8)
    pixels[10:30, 20:40] = (200, 0, 10)
    sent = rebuild(pixels, 1024)
    assert (sent.media_type, sent.width, sent.height) == ("image/png", 70, 50)
    assert np.array_equal(decoded(sent.data), pixels)


def test_a_photograph_arrives_nearly_so() -> None:
    x = np.linspace(0, 250, 300)
    pixels = np.stack([np.add.outer(x, x) / 2, np.tile(x, (300, 1)), np.tile(x[:, None], 300)], 2)
    sent = rebuild(pixels.astype(np.uint8), 1024)
    assert sent.media_type == "image/jpeg"
    assert np.abs(decoded(sent.data).astype(int) - pixels.astype(np.uint8)).mean() < 1.5


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2000, 1000), (512, 1024)), ((500, 4000), (1024, 128)), ((1, 5000), (1024, 1)),
     ((300, 200), (200, 300))],
)  # fmt: skip
def test_a_picture_is_made_smaller_and_never_larger(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    sent = rebuild(np.zeros((*shape, 3), np.uint8), 1024)
    assert (sent.width, sent.height) == size
    assert decoded(sent.data).shape[:2] == size[::-1]


def test_noise_is_encoded_too() -> None:
    """Of which JPEG makes more bytes than there are pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    assert decoded(rebuild(noise, 1024).data).shape == noise.shape


def test_the_same_pixels_are_the_same_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert rebuild(pixels, 1024).sha256 == rebuild(pixels[:, ::1].copy(), 1024).sha256


def test_a_view_of_an_array_is_sent_as_it_looks() -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 255
    assert np.array_equal(decoded(rebuild(pixels[:, ::-1], 1024).data), pixels[:, ::-1])

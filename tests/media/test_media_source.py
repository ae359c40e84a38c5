"""The door: every kind of source, and what stands in the way of each."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_builders import encoded, noise
from PIL import Image

from edgevlm.errors import MediaError, MediaTooLarge, UnreadableMedia
from edgevlm.media import MediaLimits, load_image

IMAGE = noise(6, 4, 3)
PIXELS = np.asarray(IMAGE)
PNG = encoded(IMAGE, "PNG")


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "my photo.png"
    path.write_bytes(PNG)
    return path


def refusal(source: Any, **limits: Any) -> MediaError:
    """The error of a source, checked for what every one of them owes its reader."""
    with pytest.raises(MediaError) as caught:
        load_image(source, limits=MediaLimits(**limits))
    error = caught.value
    assert error.exit_code == 2
    assert error.hint
    assert "\n" not in error.message
    assert "\n" not in error.hint
    assert len(error.message) < 200
    return error


def test_every_source_gives_the_same_pixels(png: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    sources = (png, str(png), PNG, bytearray(PNG), memoryview(PNG), url, IMAGE, PIXELS)
    for source in sources:
        pixels = load_image(source)
        np.testing.assert_array_equal(pixels, PIXELS)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous


def test_the_content_decides_and_not_the_name(png: Path) -> None:
    renamed = png.rename(png.with_suffix(".jpg"))
    np.testing.assert_array_equal(load_image(renamed), PIXELS)


def test_a_path_may_begin_in_the_home_folder(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(png.parent))
    monkeypatch.setenv("USERPROFILE", str(png.parent))
    np.testing.assert_array_equal(load_image(f"~/{png.name}"), PIXELS)
    assert "no file" in refusal("~nobody-of-that-name/a.png").message


def test_files_that_are_not_there(tmp_path: Path, png: Path) -> None:
    error = refusal(tmp_path / "none.jpg")
    assert error.message.startswith("There is no file ")
    assert isinstance(error.__cause__, FileNotFoundError)
    assert "Can't read" in refusal(png / "inside a file.png").message


def test_a_file_that_is_empty_or_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"")
    assert "is empty" in refusal(path).message
    path.write_text("Not a picture at all.\n")
    assert refusal(path).message == f"{path} is text, not JPEG, PNG, WebP, GIF, BMP or TIFF."


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path).message


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    assert "device or pipe" in refusal(tmp_path / "fifo.png").message


def test_devices_and_sockets_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "device or pipe" in refusal("/dev/zero").message
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.png")
        assert "device or pipe" in refusal("socket.png").message


@pytest.fixture
def nobody() -> Iterator[None]:
    """Not root, to whom no file is closed."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_file_that_may_not_be_read(png: Path, nobody: None) -> None:
    if os.geteuid() != 65534:
        png.chmod(0)
    error = refusal(png)
    assert error.message == f"You may not read {png}."
    assert isinstance(error.__cause__, PermissionError)


@pytest.mark.parametrize(
    "name", ["a\0b.png", "a" * 5000 + ".png", "\udcff.png", "a\nb\x1b[31m.png"]
)
def test_names_that_no_file_can_have(name: str) -> None:
    message = refusal(name).message
    assert message.isprintable()


@pytest.mark.parametrize("source", ["", "  ", None, 7, [PNG], {"url": "x"}, object()])
def test_what_is_no_source_at_all(source: Any) -> None:
    refusal(source)


def test_an_open_file_is_told_to_be_read(png: Path) -> None:
    with png.open("rb") as file:
        assert "bytes" in str(refusal(file).hint)


def test_the_byte_limit_holds_before_reading(png: Path) -> None:
    with png.open("r+b") as file:
        file.truncate(10**10)  # sparse: takes no room on the disk
    assert isinstance(refusal(png), MediaTooLarge)
    assert "larger than 64 MiB" in refusal(png).message
    assert isinstance(refusal(bytearray(100), max_bytes=99), MediaTooLarge)
    wide = memoryview(np.zeros(50, np.uint16))
    assert isinstance(refusal(wide, max_bytes=99), MediaTooLarge)
    assert isinstance(refusal("data:;base64," + "A" * 400, max_bytes=99), MediaTooLarge)


def test_a_file_that_grows_is_read_to_the_limit_only(
    png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fstat = os.fstat
    monkeypatch.setattr(os, "fstat", lambda file: os.stat_result([*fstat(file)[:6], 0, 0, 0, 0]))
    assert isinstance(refusal(png, max_bytes=len(PNG) - 1), MediaTooLarge)
    np.testing.assert_array_equal(load_image(png), PIXELS)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png,abc", "not in base64"),
        ("data:", "not in base64"),
        ("data:image/png;base64", "not in base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,####", "is broken"),
        ("data:image/png;base64,AAAAA", "is broken"),
        ("data:image/png;base64,é", "is broken"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "an SVG drawing"),
        ("data:image/png;base64," + "A" * 10_000, "not a picture"),
    ],
)
def test_data_urls_that_hold_no_picture(url: str, words: str) -> None:
    error = refusal(url)
    assert isinstance(error, UnreadableMedia)
    assert words in error.message
    assert "AAAA" not in error.message


def test_data_urls_as_people_write_them() -> None:
    body = base64.b64encode(PNG).decode()
    wrapped = "\n".join(body[i : i + 60] for i in range(0, len(body), 60))
    escaped = body.replace("+", "%2B").replace("/", "%2F").rstrip("=")
    for url in (
        f"DATA:Image/PNG;Base64,{body}",
        f"data:;base64,{wrapped}",
        f"data:;base64,{escaped}",
    ):
        np.testing.assert_array_equal(load_image(url), PIXELS)


def test_limits_of_pixels_hold_for_every_source(png: Path) -> None:
    for source in (png, PNG, IMAGE, PIXELS):
        assert "6 x 4 pixels" in refusal(source, max_pixels=23).message
        assert load_image(source, limits=MediaLimits(max_pixels=24)).shape == (4, 6, 3)


def test_a_pillow_image_is_left_as_it_was(png: Path) -> None:
    with Image.open(png) as image:
        np.testing.assert_array_equal(load_image(image), PIXELS)
        assert image.getpixel((0, 0)) == tuple(PIXELS[0, 0])
        assert image.size == (6, 4)


def test_importing_the_door_loads_no_decoder_and_no_client() -> None:
    code = "import sys, edgevlm.media; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "edgevlm" in loaded
    assert not loaded & {"PIL", "httpx", "httpcore", "h11", "certifi", "http", "email"}

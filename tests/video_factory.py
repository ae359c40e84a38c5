"""Videos made from nothing: every frame tells its number by how bright it is."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

STEP = 3  # levels of brightness from frame to frame
# What each container is written with, and FFmpeg's name for it.
CONTAINERS = {
    "mp4": ("libx264", "mp4"),
    "mov": ("mpeg4", "mov"),
    "mkv": ("libx264", "matroska"),
    "webm": ("libvpx-vp9", "webm"),
    "avi": ("mpeg4", "avi"),
}


def make_video(
    kind: str = "mp4",
    *,
    frames: int = 60,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    key_every: int = 12,
    matrix: tuple[int, int, int, int] | None = None,
    sound: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video of `frames`, (width, height) each; the top left quarter is white.

    `matrix` a, b, c, d of the track header (ISO/IEC 14496-12) shows (x, y) at
    (ax + cy, bx + dy), y downwards.
    """
    codec, format_name = CONTAINERS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format_name, options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt, stream.gop_size = "yuv420p", key_every
        stream.bit_rate = 4_000_000
        if matrix is not None:
            a, b, c, d = (65536 * value for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        if sound:
            add_sound(container, frames / fps)
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(frame_of(number, size), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def frame_of(number: int, size: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    width, height = size
    pixels = np.full((height, width, 3), number * STEP % 200, np.uint8)
    pixels[: height // 2, : width // 2] = 255
    return pixels


def number_of(pixels: NDArray[np.uint8]) -> int:
    """Which frame this is, by the darkest quarter (white may have turned to any corner)."""
    height, width, _ = pixels.shape
    quarters = [
        pixels[y : y + height // 2, x : x + width // 2].mean()
        for y in (0, height // 2)
        for x in (0, width // 2)
    ]
    return round(min(quarters) / STEP)


def add_sound(container: Any, seconds: float) -> None:
    stream = container.add_stream("aac", rate=8000)
    samples = np.zeros((1, int(8000 * seconds)), np.float32)
    sound = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    sound.sample_rate = 8000
    container.mux(stream.encode(sound))
    container.mux(stream.encode(None))

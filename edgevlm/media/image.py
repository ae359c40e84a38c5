"""Decoding: bytes, Pillow images and arrays become RGB pixels, or a MediaError.

Formats are an allow-list, chosen by content; Pillow's other readers are never
reached. The decoders are called directly, since `Image.open` guards against
large pictures through process-wide state and warnings. A process that turns
warnings into errors gets those of Pillow (about odd metadata) as UnreadableMedia.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import MediaError, MediaTooLarge, UnreadableMedia
from edgevlm.media.describe import not_a_picture, shown
from edgevlm.media.headers import check_cost, image_format
from edgevlm.media.limits import DEFAULT_LIMITS, MediaLimits

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

_DECODERS = {
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
}
_TIFF_TILE_WIDTH = 322
_TIFF_TILE_LENGTH = 323


def decode(
    data: bytes, limits: MediaLimits = DEFAULT_LIMITS, *, name: str = "The picture"
) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] of the first frame. `name` begins the messages of errors.

    Raises UnreadableMedia, and MediaTooLarge before any pixel is decoded.
    """
    limits.check_bytes(len(data), name)
    format_name = image_format(data)
    if format_name is None:
        raise not_a_picture(data, name)
    with _normalised(name, format_name):
        check_cost(data, format_name, limits, name)
        with _open(data, format_name) as image:
            _check_size(image, limits, name)
            image.load()
            # Decoders may find another size than the header's.
            limits.check_pixels(image.size, name)
            return _to_rgb(image)


def from_pil(image: Image, limits: MediaLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] of the image's current frame. Raises MediaError."""
    name = "The PIL image"
    if 0 in image.size:
        raise UnreadableMedia(f"{name} has no pixels.", hint="Give a picture that isn't empty.")
    limits.check_pixels(image.size, name)
    with _normalised(name, image.format or "picture"):
        image.load()
        return _to_rgb(image)


def from_array(array: NDArray[Any], limits: MediaLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] of an array [H, W] or [H, W, 1 | 3 | 4], in memory of its own.

    uint8; uint16, of which 65535 is white; floats from 0 to 1; bool. Raises MediaError.
    """
    name = "The array"
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise UnreadableMedia(
            f"An array of shape {shown(list(array.shape))} is not a picture.",
            hint="Give [height, width] or [height, width, channels] with 1, 3 or 4 channels.",
        )
    if 0 in pixels.shape:
        raise UnreadableMedia(f"{name} has no pixels.", hint="Give a picture that isn't empty.")
    limits.check_pixels((pixels.shape[1], pixels.shape[0]), name)
    with _normalised(name, "picture"):
        shallow = _to_uint8(pixels)
        if shallow.ndim == 3 and shallow.shape[2] == 3:
            return np.array(shallow, order="C")
        from PIL.Image import fromarray

        return _to_rgb(fromarray(np.ascontiguousarray(shallow)))


def pixels_key(pixels: NDArray[np.uint8]) -> str:
    """SHA-256, in hexadecimal, over the shape and the bytes of decoded pixels."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        # 257 is 65535 / 255.
        return np.asarray((array.astype(np.uint32) + 128) // 257, dtype=np.uint8)
    if array.dtype.kind != "f":
        raise UnreadableMedia(
            f"An array of {array.dtype} is not a picture.",
            hint="Give uint8, uint16 (65535 is white), bool, or floats from 0 to 1.",
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN, too
        raise UnreadableMedia(
            f"The array's values run from {low:.4g} to {high:.4g}, not from 0 to 1.",
            hint="Divide by its white (255 or so), and clip the rest.",
        )
    scaled = np.clip(array, 0, 1).astype(np.float32) * np.float32(255)
    return np.asarray(np.rint(scaled), dtype=np.uint8)


def _open(data: bytes, format_name: str) -> ImageFile:
    module, decoder = _DECODERS[format_name]
    image: ImageFile = getattr(importlib.import_module(module), decoder)(io.BytesIO(data))
    return image


def _check_size(image: ImageFile, limits: MediaLimits, name: str) -> None:
    limits.check_pixels(image.size, name)
    tags: Any = getattr(image, "tag_v2", {})
    width, height = tags.get(_TIFF_TILE_WIDTH, 1), tags.get(_TIFF_TILE_LENGTH, 1)
    if isinstance(width, int) and isinstance(height, int):
        # A tile is allocated whole, however little of it the picture uses.
        limits.check_pixels((width, height), f"A tile of {name}")


def _to_rgb(image: Image) -> NDArray[np.uint8]:
    from edgevlm.media.rgb import to_rgb

    return to_rgb(image)


@contextmanager
def _normalised(name: str, format_name: str) -> Iterator[None]:
    """The one place where what a decoder raises becomes a MediaError."""
    from PIL.Image import DecompressionBombError, DecompressionBombWarning

    try:
        yield
    except MediaError:
        raise
    except (DecompressionBombError, DecompressionBombWarning, MemoryError) as error:
        raise MediaTooLarge(f"{name} is too large to decode.", hint="Save it smaller.") from error
    except Exception as error:  # Pillow promises no base class for what a broken file raises
        raise UnreadableMedia(
            f"{name} is a {format_name} that can't be decoded: {_reason(error)}",
            hint="Save or download it again.",
        ) from error


def _reason(error: Exception) -> str:
    reason = shown(error).strip().rstrip(".")
    return f"{reason or type(error).__name__}."

"""Every Pillow mode becomes RGB at 8 bits, the right way up, on white.

Imports Pillow, so only `edgevlm.media.image` imports this, when it has a picture.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_TIFF_BITS_PER_SAMPLE = 258
_TIFF_SAMPLE_FORMAT = 339

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] of a loaded image, in an array of its own.

    EXIF orientation is applied, transparency lies on white, colours of an embedded
    ICC profile become sRGB. Grey deeper than 8 bits is scaled, never clipped.
    """
    upright = _UPRIGHT.get(_orientation(image))
    profile = image.info.get("icc_profile")
    shallow = _shallow(image) if image.mode in _DEEP_MODES else image
    opaque = _on_white(shallow) if shallow.has_transparency_data else shallow
    rgb = _as_srgb(opaque, profile)
    if upright is not None:
        rgb = rgb.transpose(upright)
    return np.array(rgb, dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's EXIF reader fails in many ways, and a picture needs no EXIF
        return 1


def _shallow(image: Image.Image) -> Image.Image:
    """Grey of 12, 16 or 32 bits, as "L", or "LA" where a grey value means transparent."""
    # Pillow keeps the samples of a TIFF as they are, and what they mean in its tags.
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_TIFF_BITS_PER_SAMPLE)
    values = np.asarray(image)
    if image.mode not in ("I", "F"):
        grey = _scaled(values, 0.0, 4095.0 if bits == (12,) else 65535.0)
    elif bits == (32,) and tags.get(_TIFF_SAMPLE_FORMAT, (1,)) == (1,):
        grey = _scaled_32(values.view(np.uint32))
    else:
        grey = _scaled_32(values)
    result = Image.fromarray(grey)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        result.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return result


def _scaled_32(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values without an agreed white: the smallest usual one that holds them all.

    Where there is none (values below 0 or above 65535), their own range is stretched.
    """
    is_float = values.dtype.kind == "f"
    finite = values[np.isfinite(values)] if is_float else values
    if finite.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = float(finite.min()), float(finite.max())
    whites = (1.0, 255.0, 65535.0) if is_float else (255.0, 65535.0)
    white = next((w for w in whites if high <= w), None)
    if low < 0 or white is None:
        return _scaled(values, low, high)
    return _scaled(values, 0.0, white)


def _scaled(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    # Halved, since float32 can't hold the span of its own largest values.
    grey = values.astype(np.float32) / 2 - np.float32(black / 2)
    grey *= np.float32(510 / max(white - black, 1e-30))
    grey = np.nan_to_num(grey, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.clip(np.rint(grey, out=grey), 0, 255, out=grey).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    straight = image.convert("LA") if image.mode == "La" else image
    layer = straight.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(layer, mask=layer)
    return white


def _as_srgb(image: Image.Image, profile: object) -> Image.Image:
    if image.mode in ("1", "P"):
        image = image.convert("RGB" if image.mode == "P" else "L")
    if isinstance(profile, bytes) and profile and image.mode in ("L", "RGB", "CMYK"):
        converted = _through_profile(image, profile)
        if converted is not None:
            return converted
    return image.convert("RGB")


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image in sRGB; None where the profile is sRGB, broken or of other channels."""
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in (source.profile.profile_description or ""):
            return None
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except Exception:  # a picture without its profile is better than none
        return None

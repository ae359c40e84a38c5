"""A picture as it is sent: made anew from its pixels, so that nothing else of its file goes along.

No EXIF, no place, no thumbnail, no comment, no colour profile: an array has none of them.
"""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_JPEG_QUALITY = 90
_FEW_COLOURS = 256  # drawings and screens, which JPEG would blur and PNG makes smaller


@dataclass(frozen=True, slots=True)
class SentPicture:
    """`data` is the file as the provider gets it."""

    media_type: str
    data: bytes
    width: int
    height: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def rebuild(pixels: NDArray[np.uint8], longest_side: int) -> SentPicture:
    """Encode RGB uint8 [H, W, 3], made smaller where a side is longer than that many pixels."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = longest_side / max(image.size)
    if scale < 1:
        width, height = (max(round(side * scale), 1) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    few = image.getcolors(_FEW_COLOURS) is not None
    # JPEG without `optimize`, which fails where a picture of noise outgrows Pillow's buffer.
    options: dict[str, Any] = (
        {"format": "PNG", "optimize": True}
        if few
        else {"format": "JPEG", "quality": _JPEG_QUALITY, "subsampling": 0}
    )
    file = io.BytesIO()
    image.save(file, **options)
    return SentPicture(f"image/{options['format'].lower()}", file.getvalue(), *image.size)

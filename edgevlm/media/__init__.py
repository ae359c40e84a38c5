"""The only door for picture bytes: whatever a person hands over becomes RGB pixels here."""

from __future__ import annotations

from edgevlm.media.limits import MediaLimits
from edgevlm.media.mentions import find_image_paths, missing_picture
from edgevlm.media.source import load_image
from edgevlm.media.video import open_video

__all__ = ["MediaLimits", "find_image_paths", "load_image", "missing_picture", "open_video"]

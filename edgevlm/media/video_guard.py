"""What a video may cost, and the watch that is kept over its reading."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from edgevlm.errors import EdgeVLMError, MediaTooLarge, UnreadableMedia
from edgevlm.media.describe import shown
from edgevlm.media.limits import MediaLimits


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What one video may cost. `decode_s` is for opening and decoding together."""

    max_bytes: int = 4 * 2**30
    max_download: int = 256 * 2**20
    download_s: float = 120.0
    max_duration_s: float = 12 * 3600.0
    max_streams: int = 32
    decode_s: float = 120.0


DEFAULT_VIDEO_LIMITS = VideoLimits()


class Guard:
    """The file as FFmpeg reads it, watched: each read looks at the clock and the check."""

    def __init__(
        self,
        file: BinaryIO,
        limits: MediaLimits,
        deadline: float,
        name: str,
        check: Callable[[], None],
    ) -> None:
        self.file = file
        self.limits = limits
        self._deadline = deadline
        self._name = name
        self._check = check

    def check(self) -> None:
        self._check()
        if time.monotonic() > self._deadline:
            raise MediaTooLarge(
                f"{self._name} takes too long to decode.",
                hint="Cut it, or save it smaller, for example as an H.264 MP4 of 720 lines.",
            )

    def read(self, count: int) -> bytes:
        self.check()
        return self.file.read(count)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


@contextmanager
def normalised(name: str) -> Iterator[None]:
    """The one place where what FFmpeg raises becomes a MediaError."""
    try:
        yield
    except EdgeVLMError:
        raise
    except MemoryError as error:
        raise MediaTooLarge(f"{name} is too large to decode.", hint="Save it smaller.") from error
    except Exception as error:  # FFmpegError, ValueError, OverflowError, ... of a broken file
        reason = shown(getattr(error, "strerror", None) or error).strip().rstrip(".")
        raise UnreadableMedia(
            f"{name} is a video that can't be decoded: {reason or type(error).__name__}.",
            hint="Save or download it again.",
        ) from error

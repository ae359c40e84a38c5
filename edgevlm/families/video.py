"""Showing a video to a family that knows how: as many of its frames as there is room for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from edgevlm.engine.prompt import ImageInput
from edgevlm.families.base import VideoLayout
from edgevlm.media.video import Video

MAX_FRAMES = 50
Content = tuple[str | ImageInput, ...]


def watch(layout: VideoLayout, video: Video, fits: Callable[[Content], bool]) -> Content:
    """The content of a turn that shows the video, with the most frames, up to 50, that fit.

    One frame is shown even where it does not fit, so that the caller says why. Raises what
    `Video.frames` does.
    """
    times = layout.sample(video.duration, video.fps, MAX_FRAMES)
    # Every frame takes the room of any other: a blank one tells it before any is decoded.
    blank = layout.preprocess(np.zeros((2, 2, 3), np.uint8))

    def too_many(count: int) -> bool:
        return not fits(layout.lay_out([blank] * count, times[:count], video.duration))

    most = bisect_left(range(1, len(times) + 1), True, key=too_many)
    if most < len(times):
        times = layout.sample(video.duration, video.fps, max(1, most))
    shots = [(moment, layout.preprocess(pixels)) for moment, pixels in video.frames(times)]
    return layout.lay_out([frame for _, frame in shots], [t for t, _ in shots], video.duration)

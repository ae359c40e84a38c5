"""How SmolVLM2 sees a video: frames of one tile each, with their time before them.

Which moments, which words and which sizes are those of transformers' `SmolVLMProcessor` and
`SmolVLMVideoProcessor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.prompt import ImageInput
from edgevlm.families.config_files import ConfigFile
from edgevlm.families.idefics3_image import TilingSettings, prepare

_INTRO = (
    "You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n"
)
_FRAME = "\nFrame from {minutes:02d}:{seconds:02d}:"
_OUTRO = "\n\n"
_SKIPPED_S = 1  # at each end of a video that has seconds to spare
# fmt: off
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)
# fmt: on
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# What the released models carry; each carries it.
_DEFAULT_FPS, _DEFAULT_FRAMES = 1.0, 64


@dataclass(frozen=True, slots=True)
class SmolVLMVideo:
    """`fps` frames a second are shown, `max_frames` at most (a `VideoLayout`)."""

    tiling: TilingSettings
    fps: float = _DEFAULT_FPS
    max_frames: int = _DEFAULT_FRAMES

    @classmethod
    def read(cls, processor: ConfigFile, tiling: TilingSettings) -> SmolVLMVideo:
        """Read an image processor's `video_sampling`, if it has one. Raises ModelCorrupt."""
        fps, frames, edge = _DEFAULT_FPS, _DEFAULT_FRAMES, tiling.tile
        if "video_sampling" in processor.fields:
            sampling = processor.nested("video_sampling")
            [fps] = sampling.numbers("fps", 1, fps)
            frames = sampling.positive("max_frames")
            edge = sampling.nested("video_size").positive("longest_edge")
        if fps <= 0 or frames > 99 or edge > 4096:
            raise processor.corrupt(f"samples videos at {fps} frames a second, {frames} of {edge}")
        return cls(replace(tiling, split=False, longest_edge=edge), fps, frames)

    def sample(self, duration: float, fps: float, most: int) -> tuple[float, ...]:
        most = min(most, self.max_frames)
        count = max(1, min(round(self.fps * duration), most))
        last = max(0, round(duration * fps) - 1)
        start, end = 0, last
        if duration - 2 * _SKIPPED_S > most * self.fps:
            start, end = int(_SKIPPED_S * fps), min(last, int(last + 1 - _SKIPPED_S * fps))
        indices = np.unique(np.linspace(start, end, count, dtype=int))
        return tuple(float(index) / fps for index in indices)

    def preprocess(self, pixels: NDArray[np.uint8]) -> ImageInput:
        return prepare(pixels, self.tiling)

    def lay_out(
        self, frames: Sequence[ImageInput], times: Sequence[float], duration: float
    ) -> tuple[str | ImageInput, ...]:
        length = str(timedelta(seconds=int(duration)))
        words = _INTRO.format(count=_in_words(len(frames)), duration=length)
        content: list[str | ImageInput] = []
        for frame, moment in zip(frames, times, strict=True):
            minutes, seconds = divmod(int(moment), 60)
            content += [words + _FRAME.format(minutes=minutes, seconds=seconds), frame]
            words = ""
        return (*content, _OUTRO)


def _in_words(number: int) -> str:
    """An English number below 100, as num2words writes it."""
    if number < len(_ONES):
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")

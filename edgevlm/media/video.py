"""Videos: a few of their frames become RGB pixels, or a MediaError.

PyAV (extra `video`) reads them, which is FFmpeg. What FFmpeg may do is narrowed to what a file
of one person's camera needs: the container is chosen here, by content, from four that name no
other files; its bytes come through a file of ours, no protocol may be opened, and only the
usual decoders run. Time and cancelling are looked at in every read and before every packet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import MediaTooLarge, NotSupported, UnreadableMedia
from edgevlm.media.describe import shown
from edgevlm.media.limits import DEFAULT_LIMITS, MediaLimits
from edgevlm.media.source import open_source
from edgevlm.media.video_guard import DEFAULT_VIDEO_LIMITS, Guard, VideoLimits, normalised

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_KINDS = "MP4, MOV, MKV, WebM or AVI"
_BOX_TYPES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # ISO/IEC 14496-12, QuickTime
_DECODERS = (
    "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,mpeg4,msmpeg4v2,msmpeg4v3,mjpeg,"
    "mpeg1video,mpeg2video,prores,h263,wmv2,theora"
)
# A jump costs what lies between the key frame before it and the moment wanted.
_SEEK_S = 10.0


class Video:
    """An open video. `duration` is in seconds, `fps` its frames a second on average."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, name: str, guard: Guard
    ) -> None:
        self._container = container
        self._stream = stream
        self._name = name
        self._guard = guard
        self._frames: Iterator[VideoFrame] = iter(())
        self._held: tuple[float, VideoFrame] | None = None
        self.fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        self.duration = self._duration()

    def frames(self, times: Sequence[float]) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Yield (seconds from the start, RGB uint8 [H, W, 3]) of the frame at each moment.

        `times` rise. A frame comes once, whatever moments it spans. Raises UnreadableMedia where
        no frame at all can be decoded, MediaTooLarge over the limits, and what the check
        given to `open_video` raises.
        """
        self._seek(0.0)
        shown_last = None
        for moment in times:
            with normalised(self._name):
                found = self._at(moment)
                if found is None or found[1] is shown_last:
                    continue
                seconds, shown_last = found
                pixels = self._pixels(shown_last)
            yield round(seconds, 3), pixels
        if shown_last is None:
            raise UnreadableMedia(
                f"{self._name} has no frame that can be decoded.", hint="Save or download it again."
            )

    def close(self) -> None:
        self._frames = iter(())
        self._held = None
        self._container.close()
        self._guard.file.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _duration(self) -> float:
        stream = self._stream
        if stream.duration is not None and stream.time_base is not None:
            return max(0.0, float(stream.duration * stream.time_base))
        if self._container.duration is not None:
            return max(0.0, self._container.duration / 1e6)
        last = 0.0  # as recorders write it that were stopped at once: read to the end
        for packet in self._container.demux(stream):
            self._guard.check()
            if packet.pts is not None and packet.time_base is not None:
                last = max(last, float(packet.pts * packet.time_base))
        return last

    def _at(self, moment: float) -> tuple[float, VideoFrame] | None:
        """The frame shown at `moment`, or the last one before the end."""
        if self._held is not None and self._jump_pays(moment):
            self._seek(moment)
        enough = moment - 0.5 / self.fps
        while self._held is None or self._held[0] < enough:
            frame = next(self._frames, None)
            if frame is None:
                break
            self._held = (self._seconds(frame), frame)
        return self._held

    def _jump_pays(self, moment: float) -> bool:
        assert self._held is not None
        if moment - self._held[0] < 1:
            return False
        index = self._stream.index_entries
        if len(index) < 2:
            return moment - self._held[0] > _SEEK_S
        key = index.search_timestamp(self._ticks(moment))
        return key >= 0 and index[key].timestamp > self._ticks(self._held[0])

    def _seek(self, moment: float) -> None:
        with normalised(self._name):
            self._container.seek(self._ticks(moment), stream=self._stream)
        self._held = None
        self._frames = self._decoded()

    def _decoded(self) -> Iterator[VideoFrame]:
        import av

        for packet in self._container.demux(self._stream):
            self._guard.check()
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                continue  # what is broken is left out, as every player does

    def _ticks(self, moment: float) -> int:
        base = self._stream.time_base
        return (self._stream.start_time or 0) + int(moment / float(base) if base else 0)

    def _seconds(self, frame: VideoFrame) -> float:
        base = self._stream.time_base
        if frame.pts is None or not base:
            return self._held[0] + 1 / self.fps if self._held else 0.0
        return float((frame.pts - (self._stream.start_time or 0)) * base)

    def _pixels(self, frame: VideoFrame) -> NDArray[np.uint8]:
        self._guard.limits.check_pixels((frame.width, frame.height), f"A frame of {self._name}")
        pixels = frame.to_ndarray(format="rgb24")
        # FFmpeg's angle says how far the camera's picture is to be turned, counterclockwise.
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def open_video(
    source: Any,
    *,
    limits: MediaLimits = DEFAULT_LIMITS,
    video_limits: VideoLimits = DEFAULT_VIDEO_LIMITS,
    check: Callable[[], None] = lambda: None,
) -> Video:
    """Open a path, an `https://` URL, or the bytes of an MP4, MOV, MKV, WebM or AVI.

    `check` is called again and again while the video is read, and ends that by raising.
    Raises UnreadableMedia, MediaTooLarge, and NotSupported where PyAV isn't installed.
    """
    try:
        import av
    except ImportError as error:
        raise NotSupported("Videos need PyAV.", hint="Run: pip install 'edgevlm[video]'") from error
    bounds = replace(limits, max_bytes=video_limits.max_download, timeout_s=video_limits.download_s)
    file, name = open_source(source, bounds, "video")
    guard = Guard(file, limits, time.monotonic() + video_limits.decode_s, name, check)
    container = None
    try:
        _check_size(file, video_limits, name)
        format_name = _format_of(file, name)
        with normalised(name):
            container = av.open(
                guard,
                "r",
                format=format_name,
                options={"protocol_whitelist": "none", "codec_whitelist": _DECODERS},
                metadata_errors="replace",
                io_open=_no_other_file,
            )
            stream = _video_stream(container, limits, video_limits, name)
            video = Video(container, stream, name, guard)
        if video.duration > video_limits.max_duration_s:
            hours = video_limits.max_duration_s / 3600
            raise MediaTooLarge(
                f"{name} is longer than {hours:g} hours.", hint="Cut out the part you mean."
            )
    except BaseException:
        if container is not None:
            container.close()
        file.close()
        raise
    return video


def _check_size(file: BinaryIO, limits: VideoLimits, name: str) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > limits.max_bytes:
        raise MediaTooLarge(
            f"{name} is larger than {limits.max_bytes / 2**30:.3g} GiB.",
            hint="Cut it, or save it smaller.",
        )


def _format_of(file: BinaryIO, name: str) -> str:
    """FFmpeg's name of the container, by the first bytes."""
    start = file.read(16)
    file.seek(0)
    if start[4:8] in _BOX_TYPES:
        return "mov"
    if start.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    what = "is not a video we can read" if start else "is empty"
    raise UnreadableMedia(f"{name} {what}.", hint=f"Give an {_KINDS} file.")


def _video_stream(
    container: InputContainer, limits: MediaLimits, video_limits: VideoLimits, name: str
) -> VideoStream:
    import av

    if len(container.streams) > video_limits.max_streams:
        raise MediaTooLarge(
            f"{name} has {len(container.streams)} streams.", hint="Save it with one video stream."
        )
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        raise UnreadableMedia(f"{name} has no video stream.", hint="Give another file.")
    stream = streams[0]
    codec = stream.codec_context
    if codec is None or codec.codec.name not in _DECODERS.split(","):
        coding = shown(codec.codec.name) if codec else "something unknown"
        raise UnreadableMedia(
            f"{name} is coded as {coding}, which is not read here.", hint="Save it as an H.264 MP4."
        )
    limits.check_pixels((codec.width, codec.height), f"A frame of {name}")
    codec.options = {"max_pixels": str(limits.max_pixels)}
    codec.thread_type = "AUTO"
    return stream


def _no_other_file(url: str, flags: int, options: dict[str, str]) -> Any:
    raise UnreadableMedia("The video refers to another file.", hint="Save it as one file.")

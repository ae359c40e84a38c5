"""Videos through the door: the right frames, turned the right way, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_factory import CONTAINERS, make_video, number_of

from edgevlm.errors import Interrupted, MediaTooLarge, UnreadableMedia
from edgevlm.media import MediaLimits, open_video
from edgevlm.media.video_guard import VideoLimits

TIMES = (0.0, 0.7, 2.5, 3.1, 5.9)


def shots_of(
    source: Any, times: tuple[float, ...] = TIMES, **options: Any
) -> list[tuple[float, int]]:
    with open_video(source, **options) as video:
        return [(seconds, number_of(pixels)) for seconds, pixels in video.frames(times)]


@pytest.mark.parametrize("kind", list(CONTAINERS))
@pytest.mark.parametrize("key_every", [1, 12, 1000])
def test_the_frames_asked_for(kind: str, key_every: int) -> None:
    data = make_video(kind, key_every=key_every)
    with open_video(data) as video:
        assert video.duration == pytest.approx(6.0, abs=0.11)
        assert video.fps == pytest.approx(10.0, abs=0.1)
    found = shots_of(data)
    assert [seconds for seconds, _ in found] == pytest.approx(list(TIMES), abs=0.06)
    assert [number for _, number in found] == pytest.approx([0, 7, 25, 31, 59], abs=1)


def test_frames_are_rgb_pixels_of_their_own() -> None:
    with open_video(make_video(size=(64, 48))) as video:
        [(_, pixels)] = video.frames((1.0,))
    assert (pixels.shape, pixels.dtype) == ((48, 64, 3), np.uint8)
    assert pixels.flags["C_CONTIGUOUS"]
    assert pixels[:20, :28].min() > 240


@pytest.mark.parametrize(
    ("matrix", "shape", "corner"),
    [
        ((1, 0, 0, 1), (48, 64), (0, 0)),
        ((0, 1, -1, 0), (64, 48), (0, 1)),  # a phone held upright: a quarter clockwise
        ((-1, 0, 0, -1), (48, 64), (1, 1)),
        ((0, -1, 1, 0), (64, 48), (1, 0)),
    ],
)
def test_a_turned_camera(
    matrix: tuple[int, int, int, int], shape: tuple[int, int], corner: tuple[int, int]
) -> None:
    """The white corner of the coded picture is at the top left; a turn moves it."""
    with open_video(make_video("mp4", matrix=matrix)) as video:
        [(_, pixels)] = video.frames((1.0,))
    assert pixels.shape[:2] == shape
    height, width = shape
    y, x = corner[0] * (height - 16), corner[1] * (width - 16)
    assert pixels[y + 4 : y + 12, x + 4 : x + 12].min() > 240
    assert pixels.mean() < 150


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi"])
def test_far_moments_are_reached_without_decoding_all(kind: str) -> None:
    data = make_video(kind, frames=1000, key_every=10, size=(32, 32))
    checks: list[int] = []
    with open_video(data, check=lambda: checks.append(1)) as video:
        checks.clear()
        found = [seconds for seconds, _ in video.frames((0.0, 30.0, 60.0, 90.0))]
    assert found == pytest.approx([0.0, 30.0, 60.0, 90.0], abs=0.1)
    assert len(checks) < 200  # one a packet


def test_a_moment_after_the_end_gives_the_last_frame_once() -> None:
    found = shots_of(make_video(frames=20), (1.0, 1.9, 30.0, 40.0))
    assert [number for _, number in found] == pytest.approx([10, 19], abs=1)


def test_sound_is_left_alone() -> None:
    assert len(shots_of(make_video(sound=True))) == len(TIMES)


def test_a_stream_without_a_length(tmp_path: Path) -> None:
    """As a browser's recorder writes WebM."""
    data = make_video("mkv", options={"live": "1"})
    path = tmp_path / "a clip"
    path.write_bytes(data)
    with open_video(path) as video:
        assert video.duration == pytest.approx(6.0, abs=0.2)
        found = [number_of(pixels) for _, pixels in video.frames(TIMES)]
    assert found == pytest.approx([0, 7, 25, 31, 59], abs=1)


def test_every_form_of_a_source(tmp_path: Path) -> None:
    data = make_video()
    path = tmp_path / "clip.whatever"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data)):
        assert len(shots_of(source)) == len(TIMES)


def test_a_broken_middle_costs_its_frames_only() -> None:
    data = bytearray(make_video("mp4", key_every=5))
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 60] = bytes(60)
    numbers = [number for _, number in shots_of(bytes(data), (0.0, 5.5))]
    assert numbers[0] == pytest.approx(0, abs=1)
    assert len(numbers) == 2


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (b"", "is empty"),
        (b"hello world, this is no video", "not a video"),
        (make_video()[:200], "can't be decoded"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "not a video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
        ("", "path is empty"),
        ("http://127.0.0.1/clip.mp4", "not read"),
        ("concat:/etc/passwd", "no file"),
        ("no such file.mp4", "no file"),
        (7, "not a video"),
        (np.zeros((4, 4, 3), np.uint8), "not a video"),
    ],
)
def test_what_is_no_video(source: Any, match: str) -> None:
    with pytest.raises(UnreadableMedia, match=match):
        shots_of(source)


def test_a_picture_or_a_sound_is_no_video(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "p.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(UnreadableMedia, match="not a video"):
        open_video(path)
    with pytest.raises(UnreadableMedia, match="folder"):
        open_video(tmp_path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"limits": MediaLimits(max_pixels=1000)}, "pixels"),
        ({"video_limits": VideoLimits(max_bytes=100)}, "larger"),
        ({"video_limits": VideoLimits(max_duration_s=3)}, "longer"),
        ({"video_limits": VideoLimits(max_streams=0)}, "streams"),
        ({"video_limits": VideoLimits(decode_s=0)}, "too long"),
    ],
)
def test_limits(options: dict[str, Any], match: str) -> None:
    with pytest.raises(MediaTooLarge, match=match):
        shots_of(make_video(), **options)


def test_bytes_are_held_to_the_limit_of_a_download() -> None:
    with pytest.raises(MediaTooLarge):
        open_video(make_video(), video_limits=VideoLimits(max_download=100))


def test_cancel_between_packets() -> None:
    flag = []

    def check() -> None:
        if flag:
            raise Interrupted("Stopped.")

    with open_video(make_video(), check=check) as video:
        frames = video.frames(TIMES)
        next(frames)
        flag.append(1)
        with pytest.raises(Interrupted):
            list(frames)


def test_random_damage_never_ends_the_process() -> None:
    """In a process of its own, since what could happen is a crash."""
    program = """
import random, sys
sys.path.insert(0, sys.argv[1])
from video_factory import CONTAINERS, make_video
from edgevlm.errors import MediaError
from edgevlm.media import MediaLimits, open_video
from edgevlm.media.video_guard import VideoLimits
rng = random.Random(7)
limits, video_limits = MediaLimits(max_pixels=10**6), VideoLimits(decode_s=5.0)
read = refused = 0
for kind in CONTAINERS:
    whole = make_video(kind, frames=20, size=(48, 32))
    for turn in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 4, 40))):
            at = rng.randrange(len(data) if turn % 2 else min(len(data), 900))
            data[at] = rng.randrange(256)
        if turn % 5 == 0:
            del data[rng.randrange(len(data)):]
        try:
            with open_video(bytes(data), limits=limits, video_limits=video_limits) as video:
                read += len(list(video.frames((0.0, 0.5, 1.5))))
        except MediaError:
            refused += 1
print(read > 100, refused > 20)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent.parent)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True True", "")


def test_without_pyav_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["av"] = None
from edgevlm.errors import NotSupported
from edgevlm.media import open_video
try:
    open_video(b"")
except NotSupported as error:
    print(error.exit_code, error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "4 Run: pip install 'edgevlm[video]'"

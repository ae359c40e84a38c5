"""Near pictures: what a camera does to one is let pass, what a question could be about is not."""

from __future__ import annotations

import numpy as np
import pytest
from answer_factory import pixels
from near_pairs import CHANGES, HARMLESS, changed_pair, scene

from edgevlm.cache.sketch import Sketch

N_PAIRS = 30  # of each kind; `tests/bench/cache_near.py` measures thousands


def sketch(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Sketch:
    made = Sketch.of(array)
    assert made is not None
    return made


@pytest.mark.parametrize("kind", CHANGES)
def test_a_small_change_is_no_near_picture(kind: str) -> None:
    rng = np.random.default_rng(sorted(CHANGES).index(kind))
    for _ in range(N_PAIRS):
        before, after = changed_pair(rng, kind)
        assert not sketch(before).near(sketch(after))


@pytest.mark.parametrize("kind", ["the same", "noise of 1 level"])
def test_what_a_still_camera_does_is_near(kind: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        picture = scene(rng)
        assert sketch(picture).near(sketch(HARMLESS[kind](rng, picture)))


def test_a_drift_of_the_whole_is_near_and_a_step_is_not() -> None:
    picture = np.clip(pixels(0, 64, 64), 10, 240)
    assert sketch(picture).near(sketch(picture + np.uint8(2)))
    assert not sketch(picture).near(sketch(picture + np.uint8(3)))


def test_pictures_of_other_shapes_are_never_near() -> None:
    grey = np.full((64, 96, 3), 128, np.uint8)
    assert not sketch(grey).near(sketch(grey.swapaxes(0, 1)))


@pytest.mark.parametrize(("height", "width"), [(31, 64), (64, 31), (1500, 1500)])
def test_very_small_and_large_pictures_have_none(height: int, width: int) -> None:
    assert Sketch.of(np.zeros((height, width, 3), np.uint8)) is None


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (64, 101)])
def test_it_is_kept_whole(shape: tuple[int, int]) -> None:
    one = sketch(pixels(3, *shape))
    two = Sketch.unpacked(one.packed())
    assert one.dhash == two.dhash
    np.testing.assert_array_equal(one.cells, two.cells)


@pytest.mark.parametrize("place", [-1, 0])
def test_the_last_row_and_column_count(place: int) -> None:
    picture = np.full((65, 67, 3), 100, np.uint8)
    changed = picture.copy()
    changed[place, place] += 40
    assert not sketch(picture).near(sketch(changed))


@pytest.mark.parametrize("data", [b"", bytes(16), b"\xff" * 40, bytes([0, 0, 0, 9] * 6)])
def test_what_is_no_sketch_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Sketch.unpacked(data)


def test_a_sketch_that_unfolds_without_end_is_cut() -> None:
    import zlib

    bomb = (32).to_bytes(4, "big") * 2 + bytes(8) + zlib.compress(bytes(10_000_000))
    assert Sketch.unpacked(bomb).cells.shape == (32, 32, 3)

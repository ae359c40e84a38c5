"""Made-up pictures show what is said of them. No packs: shapes before drawn backdrops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from backdrops import SIDE
from captions import load_concepts
from charts import CHARTS, draw_chart
from numpy.typing import NDArray
from PIL import Image
from printed import draw_word, load_words, print_word
from scenes import Sample, Scenes
from seen import COLOURS, MAX_THINGS, SORTS, SURFACES
from shapes import SHAPES, draw_shape
from stock import Stock
from surfaces import dominant_colour, name_colours, shade
from things import SMALLEST, compose


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(held_out=False, cutouts=(), photos=())


@pytest.fixture(scope="module")
def samples(scenes: Scenes) -> list[Sample]:
    rng = np.random.default_rng(5)
    return [scenes.draw(rng, "things") for _ in range(60)]


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def ink_box(pixels: NDArray[np.uint8]) -> tuple[float, ...]:
    """Where a picture differs from its corner, in shares."""
    differs = (pixels != pixels[0, 0]).any(-1)
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    return tuple(v / SIDE for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def test_the_same_seed_draws_the_same_picture(scenes: Scenes) -> None:
    first, again = ([scenes.draw(rng_of(seed)) for seed in range(8)] for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.scene == other.scene
        assert np.array_equal(one.pixels, other.pixels)


def test_different_seeds_draw_different_pictures(scenes: Scenes) -> None:
    assert not np.array_equal(scenes.draw(rng_of(0)).pixels, scenes.draw(rng_of(1)).pixels)


@pytest.mark.parametrize("sort", ["things", "text", "chart", "nothing"])
def test_a_picture_is_of_the_sort_asked_for(scenes: Scenes, sort: str) -> None:
    for seed in range(6):
        sample = scenes.draw(rng_of(seed), sort)
        assert SORTS[sample.scene.sort] == sort
        assert sample.pixels.shape == (SIDE, SIDE, 3)
        assert sample.pixels.dtype == np.uint8
        assert bool(sample.scene.things) == (sort == "things")
        assert bool(sample.scene.word) == (sort in ("text", "chart")) == bool(sample.word_box)


def test_photographs_that_were_never_packed_are_missed(scenes: Scenes) -> None:
    with pytest.raises(LookupError, match="photographs"):
        scenes.draw(rng_of(0), "photo")


def test_counts_are_from_one_to_five_and_concepts_repeat(samples: list[Sample]) -> None:
    counts = Counter(len(sample.scene.things) for sample in samples)
    assert set(counts) == set(range(1, MAX_THINGS + 1))
    several = [sample.scene.things for sample in samples if len(sample.scene.things) > 1]
    same = [len({thing.concept for thing in things}) == 1 for things in several]
    assert 0.15 < np.mean(same) < 0.8


def test_boxes_lie_in_the_picture_and_overlap_little(samples: list[Sample]) -> None:
    for sample in samples:
        boxes = [thing.box for thing in sample.scene.things]
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            assert SMALLEST * 0.5 < max(x1 - x0, y1 - y0) <= 0.96
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                smaller = min((k[2] - k[0]) * (k[3] - k[1]) for k in (a, b))
                assert max(w, 0) * max(h, 0) <= 0.15 * smaller


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_where_things_are_painted(seed: int) -> None:
    rng = rng_of(seed)
    items = Stock((), load_concepts()).pick(rng, 1 + seed % 4)
    picture, things = compose(
        rng, items, 1.0, lambda: Image.new("RGB", (SIDE, SIDE), (40, 120, 90))
    )
    x0, y0, x1, y1 = np.array([thing.box for thing in things]).T
    union = (x0.min(), y0.min(), x1.max(), y1.max())
    assert ink_box(np.asarray(picture)) == pytest.approx(union, abs=2 / SIDE)


def test_every_concept_drawn_as_a_shape_is_one(samples: list[Sample]) -> None:
    names = [concept.name.split(" ")[-1] for concept in load_concepts()]
    for sample in samples:
        assert all(names[thing.concept] in SHAPES for thing in sample.scene.things)
        assert all(0 <= thing.surface < len(SURFACES) for thing in sample.scene.things)


@pytest.mark.parametrize("colour", range(len(COLOURS)))
def test_shades_go_by_their_colours_name(colour: int) -> None:
    rng = rng_of(colour)
    shades = np.array([shade(rng, colour) for _ in range(60)], np.uint8)
    assert (name_colours(shades) == colour).mean() > 0.95


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_colour_that_is_said(name: str) -> None:
    drawn = [draw_shape(rng_of(seed), name) for seed in range(20)]
    coloured = [(rgba, surface) for rgba, surface in drawn if surface < len(COLOURS)]
    wrong = [surface for rgba, surface in coloured if dominant_colour(rgba) not in (surface, -1)]
    assert len(wrong) <= 2  # a shaded side may be another's colour


def test_a_thing_of_two_colours_has_none() -> None:
    rgba = np.full((40, 40, 4), 255, np.uint8)
    rgba[:20, :, :3] = (255, 0, 0)
    rgba[20:, :, :3] = (0, 0, 255)
    assert dominant_colour(rgba) == -1
    rgba[15:, :, :3] = (0, 0, 255)
    assert COLOURS[dominant_colour(rgba)] == "blue"


def test_the_words_are_short_and_the_numbers_follow() -> None:
    words = load_words()
    numbers = words[-101:]
    assert numbers == [str(number) for number in range(101)]
    assert all(3 <= len(w) <= 8 and w.isascii() and w.isalpha() and w.islower()
               for w in words[:-101])  # fmt: skip
    assert len(set(words)) == len(words) > 6000


@pytest.mark.parametrize("seed", range(6))
def test_a_word_is_drawn_within_its_size(seed: int) -> None:
    mask = draw_word(rng_of(seed), "coffee", held_out=False, width=200, height=150, aspect=1.4)
    assert mask.width <= 200 * 1.25  # turned and in perspective
    assert np.asarray(mask).max() > 200


@pytest.mark.parametrize("seed", range(6))
def test_a_word_stands_out_in_its_box(seed: int) -> None:
    picture = Image.new("RGB", (SIDE, SIDE), (200, 60, 60))
    x0, y0, x1, y1 = print_word(rng_of(seed), picture, "zebra", held_out=False, aspect=1.0)
    inside = np.asarray(picture.convert("L"), np.float32)[y0:y1, x0:x1]
    assert inside.max() - inside.min() > 55


@pytest.mark.parametrize("seed", range(8))
def test_a_charts_highest_value_is_printed_where_said(seed: int) -> None:
    picture, kind, highest, (x0, y0, x1, y1) = draw_chart(rng_of(seed), held_out=False)
    assert kind in CHARTS
    assert 1 <= highest <= 100
    digits = np.asarray(picture.convert("L"))[y0:y1, x0:x1]
    assert digits.size
    assert digits.min() < 80

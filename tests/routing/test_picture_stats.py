from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from edgevlm.routing.picture import GREY_SIDE, PictureStats, grey_copy, picture_stats


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_a_blurred_picture_is_less_sharp() -> None:
    picture = Image.fromarray(noise(150, 150))
    blurred = picture.filter(ImageFilter.GaussianBlur(3))
    sharp, soft = (picture_stats(np.asarray(p)) for p in (picture, blurred))
    assert soft.sharpness < sharp.sharpness / 20
    assert soft.contrast < sharp.contrast


def test_print_has_strokes_and_paper_is_flat() -> None:
    page = Image.new("RGB", (160, 160), "white")
    blank = picture_stats(np.asarray(page))
    ImageDraw.Draw(page).text((5, 5), "\n".join(["many words on a page"] * 9), "black")
    printed = picture_stats(np.asarray(page))
    assert (blank.strokes, blank.flat, blank.contrast, blank.sharpness) == (0.0, 1.0, 0.0, 0.0)
    assert printed.strokes > 0.05
    assert printed.flat < 1.0


def test_any_size_gives_a_small_copy_and_finite_numbers() -> None:
    for height, width in ((1, 1), (2, 5000), (3, 3), (2000, 3000), (GREY_SIDE, GREY_SIDE + 1)):
        pixels = noise(height, width)
        stats = picture_stats(pixels)
        assert max(grey_copy(pixels).shape) <= GREY_SIDE
        assert (stats.width, stats.height) == (width, height)
        assert np.isfinite(list(stats.to_dict().values())).all()


def test_stats_come_back_from_their_json() -> None:
    stats = picture_stats(noise(40, 60))
    assert PictureStats.of_dict(stats.to_dict()) == stats

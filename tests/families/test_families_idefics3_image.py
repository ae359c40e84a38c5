"""Pictures in the Idefics3 way: settings, keys, detail, and memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from smolvlm_factory import make_processor_files
from smolvlm_reference import Case, Pixels, ids_of, make_case, reference_inputs

from edgevlm.errors import UsageError
from edgevlm.families import load_family
from edgevlm.families.base import Turn

Picture = Callable[[int, int], Pixels]


def altered(folder: Path, **settings: Any) -> Path:
    """A model folder whose image processor differs in `settings`; None removes one."""
    make_processor_files(folder)
    path = folder / "preprocessor_config.json"
    merged = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in merged.items() if v is not None}))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.25, 0.27]},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]},
        {"do_resize": False},
        {"do_resize": False, "do_image_splitting": False},
        {"resample": 2},
        {"resample": 3, "do_image_splitting": False},
        {"image_mean": None, "image_std": None, "rescale_factor": None, "resample": None},
        {"do_image_splitting": None, "do_resize": None, "do_normalize": None, "do_rescale": None},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_every_setting_means_what_it_means_to_the_reference(
    tmp_path: Path, picture: Picture, cases: dict[str, Case], settings: dict[str, Any]
) -> None:
    case = make_case(altered(tmp_path / "model", **settings))
    pixels = picture(150, 100)
    _, tiles = reference_inputs(case.reference, [("user", [pixels])])
    assert tiles is not None
    image = case.family.preprocess(pixels)
    assert image.pixel_values.dtype == np.float32
    np.testing.assert_allclose(image.pixel_values, tiles, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (40, 30), (65, 64)])
def test_what_fits_into_one_tile_is_not_split(
    tmp_path: Path, picture: Picture, cases: dict[str, Case], size: tuple[int, int]
) -> None:
    case = make_case(altered(tmp_path / "model", do_resize=False))
    ids, tiles = reference_inputs(case.reference, [("user", [picture(*size)])])
    image = case.family.preprocess(picture(*size))
    assert tiles is not None
    assert (len(image.pixel_values) == 1) == (image.grid == (0, 0)) == (size != (65, 64))
    np.testing.assert_allclose(image.pixel_values, tiles, atol=1e-5)
    prompt = case.family.render([Turn("user", (image,))])
    assert ids_of(prompt, case.image_id) == ids


def test_settings_in_the_processor_file_of_transformers_5(
    tmp_path: Path, picture: Picture, cases: dict[str, Case]
) -> None:
    """It nests them in processor_config.json, and these win."""
    folder = altered(tmp_path / "model")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    nested = settings | {"size": {"longest_edge": 128}, "do_image_splitting": True}
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_len": 4, "image_processor": nested})
    )
    case = make_case(folder)
    pixels = picture(300, 200)
    _, tiles = reference_inputs(case.reference, [("user", [pixels])])
    assert case.family.preprocess(pixels).grid == (2, 2)
    np.testing.assert_allclose(case.family.preprocess(pixels).pixel_values, tiles, atol=1e-5)
    (folder / "preprocessor_config.json").unlink()
    assert load_family(folder).preprocess(pixels).grid == (2, 2)


def test_keys_tell_pictures_and_their_preparation_apart(
    tmp_path: Path, cases: dict[str, Case], picture: Picture
) -> None:
    family = cases["smolvlm"].family
    pixels = picture(120, 80)
    changed = pixels.copy()
    changed[40, 60, 1] ^= 1
    flat = np.zeros((20, 30, 3), dtype=np.uint8)
    others = [
        family.preprocess(changed).key,
        family.preprocess(pixels[:, ::-1].copy()).key,
        family.preprocess(pixels, "low").key,
        family.preprocess(flat).key,
        family.preprocess(flat.reshape(30, 20, 3)).key,
        cases["idefics3"].family.preprocess(pixels).key,
        load_family(altered(tmp_path / "other", resample=2)).preprocess(pixels).key,
    ]
    key = family.preprocess(pixels).key
    assert key == family.preprocess(pixels.copy()).key
    assert key == family.preprocess(pixels, "high").key
    assert len({key, *others}) == 1 + len(others)
    assert len(key) == 64
    assert int(key, 16)


def test_a_view_of_pixels_is_prepared_like_its_copy(
    cases: dict[str, Case], picture: Picture
) -> None:
    pixels = picture(120, 80)[::-1, 10:90]
    ours = cases["smolvlm"].family.preprocess(pixels)
    copied = cases["smolvlm"].family.preprocess(pixels.copy())
    np.testing.assert_array_equal(ours.pixel_values, copied.pixel_values)
    assert ours.key == copied.key


def test_no_float_copy_of_a_large_picture(cases: dict[str, Case]) -> None:
    """12 MP would be 144 MB as float32; what is needed are the pixels and a few tiles."""
    pixels = np.zeros((3000, 4000, 3), dtype=np.uint8)
    tracemalloc.start()
    try:
        image = cases["smolvlm"].family.preprocess(pixels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert image.grid == (3, 4)
    assert peak < 2 * pixels.nbytes


def tokens_within(family: Any, pixels: Pixels, budget: int) -> tuple[int, tuple[int, int]]:
    image = family.preprocess(pixels, "auto", budget)
    assert image.n_tokens <= budget
    return image.n_tokens, image.grid


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        # 4 tokens a tile; 256 pixels the longest edge, of tiles of 64.
        ((300, 200), [(4, (0, 0)), (20, (2, 2)), (28, (2, 3)), (52, (3, 4))]),
        ((200, 300), [(4, (0, 0)), (20, (2, 2)), (28, (3, 2)), (52, (4, 3))]),
        ((100, 100), [(4, (0, 0)), (20, (2, 2)), (40, (3, 3)), (68, (4, 4))]),
        ((900, 60), [(4, (0, 0)), (12, (1, 2)), (16, (1, 3)), (20, (1, 4))]),
    ],
)
def test_a_budget_takes_the_most_tiles_that_it_pays(
    cases: dict[str, Case],
    picture: Picture,
    size: tuple[int, int],
    grids: list[tuple[int, tuple[int, int]]],
) -> None:
    family, pixels = cases["smolvlm"].family, picture(*size)
    for budget in range(4, 80):
        affordable = [(tokens, grid) for tokens, grid in grids if tokens <= budget]
        assert tokens_within(family, pixels, budget) == affordable[-1]


def test_a_budget_is_a_layout_that_the_model_knows(
    cases: dict[str, Case], picture: Picture
) -> None:
    """The reference, told to enlarge the picture less, cuts the same tiles and writes the same."""
    case, pixels = cases["smolvlm"], picture(300, 200)
    for budget, longest_edge in [(51, 192), (28, 192), (27, 128)]:
        image = case.family.preprocess(pixels, "auto", budget)
        ids, tiles = reference_inputs(
            case.reference, [("user", [pixels])], size={"longest_edge": longest_edge}
        )
        assert tiles is not None
        np.testing.assert_allclose(image.pixel_values, tiles, atol=1e-5)
        assert ids_of(case.family.render([Turn("user", (image,))]), case.image_id) == ids


def test_a_budget_that_changes_nothing_changes_no_key(
    cases: dict[str, Case], picture: Picture
) -> None:
    family, pixels = cases["smolvlm"].family, picture(300, 200)
    assert family.preprocess(pixels, "auto", 1000).key == family.preprocess(pixels).key
    assert family.preprocess(pixels, "auto", 5).key == family.preprocess(pixels, "low").key
    keys = {family.preprocess(pixels, "auto", budget).key for budget in (5, 21, 41, 53)}
    assert len(keys) == 4


def test_low_detail_stays_low(cases: dict[str, Case], picture: Picture) -> None:
    family, pixels = cases["smolvlm"].family, picture(300, 200)
    assert family.preprocess(pixels, "low", 1000).grid == (0, 0)
    unsplit = cases["unsplit"].family
    assert unsplit.preprocess(pixels, "auto", 1000).grid == (0, 0)
    assert unsplit.preprocess(pixels, "high", 41).grid == (2, 3)


def test_pictures_that_are_not_resized_keep_to_a_budget(tmp_path: Path, picture: Picture) -> None:
    family = load_family(altered(tmp_path / "model", do_resize=False))
    assert family.preprocess(picture(300, 200), "auto", 4 * 21).grid == (4, 5)
    assert tokens_within(family, picture(300, 200), 4 * 20) == (4 * 13, (3, 4))
    assert tokens_within(family, picture(60, 40), 4) == (4, (0, 0))


@pytest.mark.parametrize("detail", ["low", "auto", "high"])
def test_a_budget_below_one_tile_is_refused(
    cases: dict[str, Case], picture: Picture, detail: Any
) -> None:
    with pytest.raises(UsageError, match="at least 4 tokens, more than 3"):
        cases["smolvlm"].family.preprocess(picture(300, 200), detail, 3)

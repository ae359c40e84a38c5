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

"""The Core ML vision encoder: tile by tile, its refusals; run by the interpreter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coreml_factory import CoreMLParts
from coreml_interpreter import InterpretedPackage

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import adaptable
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import Interrupted, ModelCorrupt, NotSupported
from edgevlm.runtimes.coreml_vision import CoreMLVisionEncoder


@pytest.fixture(scope="module")
def parts(smolvlm_coreml: Path) -> CoreMLParts:
    return CoreMLParts(smolvlm_coreml)


@pytest.fixture(scope="module")
def image(parts: CoreMLParts) -> ImageInput:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    return parts.family.preprocess(pixels)


@pytest.fixture
def encoder(parts: CoreMLParts) -> CoreMLVisionEncoder:
    parts.vision._package.before = lambda: None  # type: ignore[attr-defined]
    return parts.vision


def test_adapters_are_refused_by_name(encoder: CoreMLVisionEncoder) -> None:
    with pytest.raises(NotSupported, match=r"seeing changes the vision tower, .* coreml can't"):
        adaptable(encoder, "seeing")


def test_tile_by_tile_on_the_neural_engine(encoder: CoreMLVisionEncoder, image: ImageInput) -> None:
    package = encoder._package
    assert isinstance(package, InterpretedPackage)
    assert package.units == "CPU_AND_NE"
    package.predictions = 0
    features = encoder.encode(image, Cancel())
    assert package.predictions == len(image.pixel_values) > 2
    assert (features.dtype, features.shape) == (np.float32, (image.n_tokens, 64))
    share = image.n_tokens // len(image.pixel_values)
    last = replace(image, pixel_values=image.pixel_values[-1:], pixel_mask=None, n_tokens=share)
    np.testing.assert_array_equal(encoder.encode(last, Cancel()), features[-share:])


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_cancel_stops_between_tiles(
    encoder: CoreMLVisionEncoder, image: ImageInput, done: int
) -> None:
    package, cancel = encoder._package, Cancel()
    assert isinstance(package, InterpretedPackage)
    package.predictions = 0
    if not done:
        cancel.set()
    package.before = lambda: cancel.set() if package.predictions == done - 1 else None
    with pytest.raises(Interrupted):
        encoder.encode(image, cancel)
    assert package.predictions == done
    package.before = lambda: None
    encoder.encode(image, Cancel())


def test_tiles_of_another_size(encoder: CoreMLVisionEncoder, image: ImageInput) -> None:
    small = replace(image, pixel_values=image.pixel_values[..., :32], pixel_mask=None)
    with pytest.raises(ModelCorrupt, match="takes 3 x 64 x 64 pictures, the processor makes 3 x"):
        encoder.encode(small, Cancel())


def test_tiles_with_padding(encoder: CoreMLVisionEncoder, image: ImageInput) -> None:
    assert image.pixel_mask is not None
    mask = image.pixel_mask.copy()
    mask[0, -1] = False
    with pytest.raises(NotSupported, match="can't tell padding from picture"):
        encoder.encode(replace(image, pixel_mask=mask), Cancel())


def test_slots_of_another_number(encoder: CoreMLVisionEncoder, image: ImageInput) -> None:
    with pytest.raises(ModelCorrupt, match="tokens of a picture with 7 slots"):
        encoder.encode(replace(image, n_tokens=7), Cancel())

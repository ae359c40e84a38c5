"""The vision side of the ONNX runtime on a hand-written encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mini_model import PATCH, Mini, reference_features, write_vision

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import Interrupted, ModelCorrupt, NotSupported, RuntimeFailed
from edgevlm.runtimes.onnx_vision import OnnxVisionEncoder

SIZE = 2 * PATCH


def encoder(folder: Path, mini: Mini | None = None, **layout: bool) -> OnnxVisionEncoder:
    path = folder / "vision_encoder.onnx"
    write_vision(path, mini or Mini(), **layout)
    return OnnxVisionEncoder(ModelFiles("mini", folder, {"vision_encoder": path}), LoadOptions(1))


def picture(tiles: int, *, size: int = SIZE, mask: np.ndarray | None = None) -> ImageInput:
    pixels = np.random.default_rng(3).standard_normal((tiles, 3, size, size)).astype(np.float32)
    return ImageInput(pixels, mask, (0, 0), 4 * tiles, "key")


def left_half(tiles: int) -> np.ndarray:
    mask = np.zeros((tiles, SIZE, SIZE), np.bool_)
    mask[:, :, :PATCH] = True
    return mask


@pytest.mark.parametrize("tiles", [1, 2, 13])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_tokens_of_every_tile_in_order(
    tmp_path: Path, tiles: int, batched: bool, masked: bool
) -> None:
    image = picture(tiles)
    features = encoder(tmp_path, batched=batched, masked=masked).encode(image, Cancel())
    assert features.dtype == np.float32
    np.testing.assert_allclose(
        features, reference_features(Mini(), image.pixel_values), rtol=1e-5, atol=1e-5
    )


def test_a_float16_encoder_gives_float32(tmp_path: Path) -> None:
    image = picture(2)
    features = encoder(tmp_path, Mini(dtype="float16")).encode(image, Cancel())
    assert features.dtype == np.float32
    expected = reference_features(Mini(), image.pixel_values)
    np.testing.assert_allclose(features, expected, atol=1e-2)


def test_padding_is_masked(tmp_path: Path) -> None:
    image = picture(3, mask=left_half(3))
    features = encoder(tmp_path).encode(image, Cancel())
    seen = image.pixel_values * left_half(3)[:, None]
    np.testing.assert_allclose(features, reference_features(Mini(), seen), atol=1e-5)


def test_padding_wants_a_graph_that_takes_a_mask(tmp_path: Path) -> None:
    vision = encoder(tmp_path, masked=False)
    with pytest.raises(NotSupported, match="padding"):
        vision.encode(picture(1, mask=left_half(1)), Cancel())
    whole = np.ones((1, SIZE, SIZE), np.bool_)
    assert vision.encode(picture(1, mask=whole), Cancel()).shape == (4, 32)


def test_another_count_than_the_prompt_has_slots(tmp_path: Path) -> None:
    image = picture(2)
    wrong = ImageInput(image.pixel_values, None, (0, 0), 9, "key")
    with pytest.raises(ModelCorrupt, match="8 tokens of a picture with 9 slots"):
        encoder(tmp_path).encode(wrong, Cancel())


def test_another_size_than_the_graph_takes(tmp_path: Path) -> None:
    with pytest.raises(
        ModelCorrupt, match=r"takes 3 x 8 x 8 pictures, the processor makes 3 x 12 x 12"
    ):
        encoder(tmp_path).encode(picture(1, size=12), Cancel())


def test_cancelled_within_the_last_tile_it_works_again(tmp_path: Path) -> None:
    vision = encoder(tmp_path)
    image = picture(2)

    class AtSecondTile(Cancel):
        runs = 0

        @contextmanager
        def calling(self, callback: Callable[[], None]) -> Iterator[None]:
            with super().calling(callback):
                self.runs += 1
                if self.runs == 2:
                    self.set()
                yield

    cancel = AtSecondTile()
    with pytest.raises(Interrupted):
        vision.encode(image, cancel)
    assert cancel.runs == 2
    expected = reference_features(Mini(), image.pixel_values)
    np.testing.assert_allclose(vision.encode(image, Cancel()), expected, atol=1e-5)


def test_closed(tmp_path: Path) -> None:
    vision = encoder(tmp_path)
    vision.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        vision.encode(picture(1), Cancel())

"""mmproj files through mtmd: the tiles that a family cut, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from llamacpp_parts import OPTIONS, llamacpp_files
from smolvlm_factory import load_reference, make_processor_files

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import ModelFiles, adaptable
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import Interrupted, ModelCorrupt, NotSupported, RuntimeFailed
from edgevlm.families import load_family
from edgevlm.runtimes.llamacpp_vision import LlamaCppVisionEncoder

# ggml looks GELU up in a table of 16-bit numbers; the embeddings have a deviation of 1.
GELU = 5e-3


class CountedCancel(Cancel):
    """Set when it was looked at for the `n`th time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    @property
    def is_set(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.set()
        return super().is_set


@pytest.fixture(scope="module")
def encoder(smolvlm_gguf: Path) -> Iterator[LlamaCppVisionEncoder]:
    encoder = LlamaCppVisionEncoder(llamacpp_files(smolvlm_gguf), OPTIONS)
    yield encoder
    encoder.close()


@pytest.fixture(scope="module")
def image(smolvlm_gguf: Path) -> ImageInput:
    pixels = np.random.default_rng(4).integers(0, 256, (170, 300, 3), dtype=np.uint8)
    return load_family(smolvlm_gguf).preprocess(pixels)


def test_adapters_are_refused_by_name(encoder: LlamaCppVisionEncoder) -> None:
    with pytest.raises(NotSupported, match=r"seeing changes the vision tower, .* llamacpp can't"):
        adaptable(encoder, "seeing")


def test_tiles_become_what_transformers_makes_of_them(
    encoder: LlamaCppVisionEncoder, image: ImageInput, smolvlm_source: Path
) -> None:
    found = encoder.encode(image, Cancel())
    reference = load_reference(smolvlm_source).model
    with torch.no_grad():
        tower = reference.vision_model(torch.from_numpy(image.pixel_values))
        expected = reference.connector(tower.last_hidden_state).reshape(found.shape).numpy()
    assert len(image.pixel_values) > 4
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=GELU)
    np.testing.assert_array_equal(encoder.encode(image, Cancel()), found)


def test_it_needs_no_decoder(
    encoder: LlamaCppVisionEncoder, image: ImageInput, smolvlm_gguf: Path
) -> None:
    files = llamacpp_files(smolvlm_gguf)
    alone = ModelFiles("x", files.folder, {"vision_encoder": files.roles["vision_encoder"]})
    other = LlamaCppVisionEncoder(alone, OPTIONS)
    np.testing.assert_array_equal(other.encode(image, Cancel()), encoder.encode(image, Cancel()))
    other.close()


def test_files_with_the_old_names_of_the_mlp(
    encoder: LlamaCppVisionEncoder, image: ImageInput, smolvlm_gguf: Path, tmp_path: Path
) -> None:
    """As llama.cpp's converter wrote them until 2025, and as they are published."""
    files = llamacpp_files(smolvlm_gguf)
    reader = GGUFReader(files.roles["vision_encoder"])
    writer = GGUFWriter(tmp_path / "mmproj.gguf", "clip")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        if field.types[0] == GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), field.types[0])
    swap = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    for tensor in reader.tensors:
        parts = [swap.get(part, part) for part in tensor.name.split(".")]
        writer.add_tensor(".".join(parts), np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    roles = {"vision_encoder": tmp_path / "mmproj.gguf"}
    old = LlamaCppVisionEncoder(ModelFiles("old", files.folder, roles), OPTIONS)
    np.testing.assert_array_equal(old.encode(image, Cancel()), encoder.encode(image, Cancel()))
    old.close()


@pytest.mark.parametrize("looks", [2, 10, 60])
def test_a_cancel_between_operators(
    encoder: LlamaCppVisionEncoder, image: ImageInput, looks: int
) -> None:
    expected = encoder.encode(image, Cancel())
    with pytest.raises(Interrupted):
        encoder.encode(image, CountedCancel(looks))
    np.testing.assert_array_equal(encoder.encode(image, Cancel()), expected)


def test_pictures_that_it_would_get_wrong_are_refused(
    encoder: LlamaCppVisionEncoder, image: ImageInput
) -> None:
    assert image.pixel_mask is not None
    padded = image.pixel_mask.copy()
    padded[0, -1] = False
    with pytest.raises(NotSupported, match="can't tell padding from picture"):
        encoder.encode(replace(image, pixel_mask=padded), Cancel())
    with pytest.raises(ModelCorrupt, match="takes pictures of 64 x 64 pixels"):
        encoder.encode(replace(image, pixel_values=image.pixel_values[:, :, 1:]), Cancel())
    for pixels in (image.pixel_values * 1.01, image.pixel_values + 2, image.pixel_values * np.nan):
        with pytest.raises(ModelCorrupt, match="normalise pictures differently"):
            encoder.encode(replace(image, pixel_values=pixels), Cancel())
    with pytest.raises(ModelCorrupt, match="tokens of a picture with 3 slots"):
        encoder.encode(replace(image, n_tokens=3), Cancel())


def test_closed_is_closed(smolvlm_gguf: Path, image: ImageInput) -> None:
    encoder = LlamaCppVisionEncoder(llamacpp_files(smolvlm_gguf), OPTIONS)
    encoder.close()
    encoder.close()
    with pytest.raises(RuntimeFailed, match="The model was closed"):
        encoder.encode(image, Cancel())


def test_it_is_closed_while_it_runs(
    encoder: LlamaCppVisionEncoder, image: ImageInput, smolvlm_gguf: Path
) -> None:
    doomed = LlamaCppVisionEncoder(llamacpp_files(smolvlm_gguf), OPTIONS)

    class Closing(Cancel):
        """Closes the encoder between two operators, as another thread may."""

        looks = 0

        @property
        def is_set(self) -> bool:
            self.looks += 1
            if self.looks == 20:
                doomed.close()
            return False

    one = replace(image, pixel_values=image.pixel_values[:1], pixel_mask=None, n_tokens=4)
    found = doomed.encode(one, Closing())
    np.testing.assert_array_equal(found, encoder.encode(one, Cancel()))
    with pytest.raises(RuntimeFailed, match="The model was closed"):
        doomed.encode(one, Cancel())


def test_files_that_are_missing_or_no_vision_encoder(smolvlm_gguf: Path, tmp_path: Path) -> None:
    files = llamacpp_files(smolvlm_gguf)
    make_processor_files(tmp_path)
    for role, expected in (
        (None, "has no vision_encoder for llama.cpp"),
        (tmp_path / "mmproj.gguf", r"mmproj\.gguf is missing"),
        (files.roles["decoder"], "it has no clip"),
    ):
        roles = {} if role is None else {"vision_encoder": role}
        with pytest.raises(ModelCorrupt, match=expected):
            LlamaCppVisionEncoder(ModelFiles("x", tmp_path, roles), OPTIONS)

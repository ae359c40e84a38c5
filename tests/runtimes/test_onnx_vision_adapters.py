"""Adapters of vision encoders on ONNX Runtime: merged weights on transformers say what they
must do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from mini_model import Mini, write_model
from onnxruntime.quantization import quantize_dynamic
from vision_adapters import (
    MIXTURES,
    changed,
    check_each_picture_has_its_own,
    check_sees_as_merged,
    loaded,
    merged_features,
    mixture,
    picture,
    vision_lora,
)

from edgevlm.engine.adapter import Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import AdapterMismatch, NotSupported, RuntimeFailed
from edgevlm.models.onnx_export import export_onnx
from edgevlm.runtimes.onnx_names import vision_product
from edgevlm.runtimes.onnx_vision import OnnxVisionEncoder

QUERY = "vision_model.encoder.layers.1.self_attn.q_proj"


def load(folder: Path) -> OnnxVisionEncoder:
    roles = {"vision_encoder": folder / "onnx" / "vision_encoder.onnx"}
    return OnnxVisionEncoder(ModelFiles("random", folder, roles), LoadOptions(threads=1))


@pytest.fixture(scope="module")
def encoder(smolvlm: Path) -> Iterator[OnnxVisionEncoder]:
    encoder = load(smolvlm)
    yield encoder
    encoder.close()


@pytest.fixture(scope="module")
def image(smolvlm_source: Path) -> ImageInput:
    return picture(smolvlm_source)


@pytest.mark.parametrize("name", MIXTURES)
def test_it_sees_as_merged_weights_do(
    encoder: OnnxVisionEncoder, image: ImageInput, smolvlm_source: Path, name: str
) -> None:
    check_sees_as_merged(encoder, image, smolvlm_source, mixture(smolvlm_source, name))


def renamed(model: onnx.ModelProto) -> None:
    """As torch exports it: nodes have the modules' names, their weights none."""
    names = {}
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".weight") and (module := vision_product(tensor.name)):
            names[tensor.name] = module.replace("layers.", "layers~").replace(".", "/")
            tensor.name = f"onnx::MatMul_{len(names)}"
    ids = {name: f"onnx::MatMul_{i}" for i, name in enumerate(names, 1)}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in names:
            node.name = f"/{names[node.input[1]]}/MatMul".replace("~", ".")
            node.input[1] = ids[node.input[1]]


@pytest.mark.parametrize("form", ["16 bits", "8 bits", "by torch", "by torch, 8 bits"])
def test_other_forms_of_the_weights(
    image: ImageInput, smolvlm_source: Path, smolvlm: Path, tmp_path: Path, form: str
) -> None:
    """As near to the merged model as their base is to that one's."""
    bits = {"16 bits": 16, "8 bits": 8}.get(form)
    if bits is not None:
        export_onnx(smolvlm_source, tmp_path, decoder_bits=32, vision_bits=bits)
    else:
        (tmp_path / "onnx").mkdir()
        model = onnx.load(smolvlm / "onnx" / "vision_encoder.onnx")
        renamed(model)
        path = tmp_path / "onnx" / "vision_encoder.onnx"
        onnx.save(model, path)
        if "8 bits" in form:
            quantize_dynamic(path, path, op_types_to_quantize=["MatMul"])
    mixed = mixture(smolvlm_source, "two with scales")
    encoder = load(tmp_path)
    base = encoder.encode(image, Cancel())
    found = encoder.encode_with(image, loaded(encoder, mixed), Cancel())
    expected = merged_features(smolvlm_source, image, mixed)
    rounding = np.abs(base - merged_features(smolvlm_source, image, {})).max()
    assert np.abs(found - expected).max() < 1e-4 + 3 * rounding
    assert np.abs(found - base).max() > 0.5 > 3 * rounding
    np.testing.assert_array_equal(encoder.encode(image, Cancel()), base)


def test_each_picture_has_its_own(
    encoder: OnnxVisionEncoder, image: ImageInput, smolvlm_source: Path
) -> None:
    check_each_picture_has_its_own(encoder, image, smolvlm_source)


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (changed(QUERY, (8, 33), (32, 8)), "odd .* of random goes from 32 to 32"),
        (changed(QUERY, (8, 32), (33, 8)), "from 32 to 33"),
        (changed(QUERY.replace("1", "2"), (8, 32), (32, 8)), "doesn't have"),
        (changed("visual.blocks.0.attn.qkv", (8, 32), (96, 8)), "qkv"),
    ],
)
def test_what_does_not_fit_is_refused(
    encoder: OnnxVisionEncoder, image: ImageInput, lora: Lora, says: str
) -> None:
    base = encoder.encode(image, Cancel())
    with pytest.raises(AdapterMismatch, match=says):
        encoder.load_adapter(lora)
    np.testing.assert_array_equal(encoder.encode(image, Cancel()), base)


def test_a_product_without_a_name_is_never_passed_over(
    smolvlm: Path, smolvlm_source: Path, tmp_path: Path
) -> None:
    model = onnx.load(smolvlm / "onnx" / "vision_encoder.onnx")
    (weight,) = (t for t in model.graph.initializer if t.name.endswith(f"{QUERY}.weight"))
    (product,) = (node for node in model.graph.node if weight.name in node.input)
    weight.name = product.input[1] = "onnx::MatMul_1"
    (tmp_path / "onnx").mkdir()
    onnx.save(model, tmp_path / "onnx" / "vision_encoder.onnx")
    encoder = load(tmp_path)
    encoder.load_adapter(vision_lora(smolvlm_source, "v_proj"))
    with pytest.raises(NotSupported, match=f"{QUERY}, for which vision_encoder.onnx of random has"):
        encoder.load_adapter(vision_lora(smolvlm_source, "q_proj"))


def test_an_encoder_that_is_no_tower_of_layers(tmp_path: Path, smolvlm_source: Path) -> None:
    """Such as the built-in model's."""
    encoder = OnnxVisionEncoder(write_model(tmp_path, Mini()), LoadOptions(threads=1))
    with pytest.raises(NotSupported, match="names no layers that are known") as caught:
        encoder.load_adapter(vision_lora(smolvlm_source))
    assert "leaves this part of the model alone" in str(caught.value.hint)


def test_adapters_that_are_closed_or_of_another_model(
    encoder: OnnxVisionEncoder, image: ImageInput, smolvlm: Path, smolvlm_source: Path
) -> None:
    adapter = encoder.load_adapter(vision_lora(smolvlm_source, name="every"))
    other = load(smolvlm)
    with pytest.raises(AdapterMismatch, match="every was loaded for another model"):
        other.encode_with(image, {adapter: 1.0}, Cancel())
    adapter.close()
    with pytest.raises(RuntimeFailed, match="every was closed"):
        encoder.encode_with(image, {adapter: 1.0}, Cancel())
    other.close()
    with pytest.raises(RuntimeFailed, match="The model was closed"):
        other.load_adapter(vision_lora(smolvlm_source))

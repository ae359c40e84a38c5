"""The sizes of models: the catalog's agree with the published, and a folder's with its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevlm.devices.predict import predict_memory, predict_timing
from edgevlm.devices.profiles import find_profile
from edgevlm.devices.shape import usual_workload
from edgevlm.devices.target import profile_target
from edgevlm.engine.placement import Placement
from edgevlm.models.catalog import load_catalog
from edgevlm.models.shapes import (
    catalog_weights,
    local_shape,
    local_weights,
    picture_tiles,
    sizes_of,
)
from edgevlm.models.store import Store
from edgevlm.settings import load_settings


@pytest.mark.parametrize("name", sorted(load_catalog().entries))
def test_a_catalog_entry_has_a_shape_of_its_parameters(name: str) -> None:
    entry = load_catalog().entries[name]
    assert entry.shape is not None
    assert entry.shape.context_length == entry.context_length
    assert entry.shape.parameters == pytest.approx(entry.parameters, rel=0.15)
    for placement in entry.placements:
        weights = catalog_weights(entry, placement)
        assert weights is not None
        count = entry.shape.decoder.layer_weights + entry.shape.decoder.head_weights
        # From 4 bits and their scales to 16 bits with an embedding table beside the head.
        assert 0.5 < weights.decoder / count < 2.8, placement
        assert weights.vision > 0


def test_a_folder_tells_its_own_sizes(smolvlm: Path) -> None:
    shape = local_shape(smolvlm)
    assert shape is not None
    assert shape.decoder.cache_width == 2 * 2 * 2 * 16
    assert shape.vision is not None
    assert shape.vision.tokens == 4
    weights = local_weights(smolvlm, Placement("onnx", "onnx"), shape)
    assert weights is not None
    files = {path.stem: path.stat().st_size for path in smolvlm.glob("onnx/*.onnx")}
    assert weights.decoder == files["decoder_model_merged"]
    assert weights.embeddings == files["embed_tokens"]
    assert weights.bits["decoder"] == "fp32"


def test_a_placement_without_files_counts_as_converted(smolvlm: Path) -> None:
    shape = local_shape(smolvlm)
    converted = local_weights(smolvlm, Placement("llamacpp", "llamacpp"), shape)
    assert converted is not None
    assert shape is not None
    weights = shape.decoder.layer_weights + shape.decoder.head_weights
    assert converted.decoder == weights * 9 // 16


def test_a_folder_that_tells_nothing_has_no_shape(tmp_path: Path) -> None:
    assert local_shape(tmp_path) is None
    (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": "wide"}}')
    assert local_shape(tmp_path) is None
    (tmp_path / "config.json").unlink()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    assert local_shape(tmp_path) is None


@pytest.mark.parametrize("number", ["64", 0, -1, 1.5, [], {}, True, 10**400])
@pytest.mark.parametrize(
    "field",
    [
        ("config.json", "text_config", "head_dim"),
        ("config.json", "text_config", "num_key_value_heads"),
        ("config.json", "text_config", "rope_theta"),
        ("config.json", "vision_config", "patch_size"),
        ("preprocessor_config.json", "size", "longest_edge"),
    ],
)
@pytest.mark.parametrize("model_type", ["smolvlm", "other"])
def test_numbers_that_are_none_make_no_trouble(
    smolvlm: Path, tmp_path: Path, field: tuple[str, str, str], number: object, model_type: str
) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        fields = json.loads((smolvlm / name).read_text())
        if name == "config.json":
            fields["model_type"] = model_type
        if name == field[0]:
            fields.setdefault(field[1], {})[field[2]] = number
        (tmp_path / name).write_text(json.dumps(fields))
    shape = local_shape(tmp_path)
    if shape is not None:  # by a default, or by what this family does not ask for
        placement = Placement("onnx", "onnx")
        weights = local_weights(tmp_path, placement, shape)
        assert weights is not None
        target = profile_target(find_profile("pc-8gb"))
        timing = predict_timing(shape, weights, placement, usual_workload(shape), target)
        assert timing.answer > 0
        assert predict_memory(shape, weights, placement, 100).total > 0
        assert shape.vision is None or picture_tiles(shape.vision, 1024, 768) > 0


def test_a_tile_without_a_token_is_no_shape(smolvlm: Path, tmp_path: Path) -> None:
    fields = json.loads((smolvlm / "config.json").read_text())
    fields["vision_config"]["patch_size"] = fields["vision_config"]["image_size"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert local_shape(tmp_path) is None


def test_tiles_of_pictures() -> None:
    shape = load_catalog().entries["smolvlm2-500m"].shape
    assert shape is not None
    assert shape.vision is not None
    assert picture_tiles(shape.vision, 640, 480) == 13
    assert picture_tiles(shape.vision, 512, 512) == 17
    tiny = load_catalog().entries["edgevlm-tiny"].shape
    assert tiny is not None
    assert tiny.vision is not None
    assert picture_tiles(tiny.vision, 4000, 3000) == 1


def test_a_model_by_name_and_by_folder(smolvlm: Path) -> None:
    store = Store(load_settings())
    assert sizes_of("smolvlm2-256m", store).shape == load_catalog().entries["smolvlm2-256m"].shape
    assert sizes_of(str(smolvlm), store).shape == local_shape(smolvlm)


def test_a_folder_that_one_may_not_read_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> bool:  # as Path.is_file is in a folder without rights
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert local_shape(tmp_path) is None

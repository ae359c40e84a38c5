"""A package is checked before Core ML sees it: paths, weights, and what it takes and gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coreml_factory import OPTIONS, coreml_files
from coreml_interpreter import install
from coremltools.proto import Model_pb2

from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.runtimes.coreml_adapter import LORA_STATES
from edgevlm.runtimes.coreml_decoder import CoreMLLanguageModel
from edgevlm.runtimes.coreml_package import read_package
from edgevlm.runtimes.coreml_vision import CoreMLVisionEncoder

ITEMS = "Data/com.apple.CoreML"
PROGRAM = f"{ITEMS}/model.mlmodel"
WEIGHTS = f"{ITEMS}/weights/weight.bin"


@pytest.fixture
def package(smolvlm_coreml: Path, tmp_path: Path) -> Path:
    source = smolvlm_coreml / "coreml" / "decoder.mlpackage"
    return shutil.copytree(source, tmp_path / "decoder.mlpackage")


def test_a_sound_package(package: Path) -> None:
    info = read_package(package / "Manifest.json")
    assert info.path == package
    assert info.inputs["inputs_embeds"].shape == ((1, 1), (1, 256), (64, 64))
    assert info.inputs["causal_mask"].shape == ((1, 1), (1, 1), (1, 256), (1, 1024))
    assert {port.type for port in (*info.inputs.values(), *info.states.values())} == {"FLOAT16"}
    assert info.outputs["logits"].shape == ((1, 1), (514, 514))
    assert set(info.states) == {"k_cache", "v_cache", *LORA_STATES}
    assert info.states["lora_a_down_proj"].shape == ((2, 2), (32, 32), (128, 128))
    assert info.states["lora_b_up_proj"].shape == ((2, 2), (32, 32), (128, 128))


def edit_manifest(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = package / "Manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def move_item(to: Any) -> Callable[[Path], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = to

    return lambda package: edit_manifest(package, change)


def edit_program(package: Path, change: Callable[[Any], None]) -> None:
    model = Model_pb2.Model()
    model.ParseFromString((package / PROGRAM).read_bytes())
    change(model)
    (package / PROGRAM).write_bytes(model.SerializeToString())


def first_blob(model: Any) -> Any:
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    for operation in block.operations:
        if operation.attributes["val"].HasField("blobFileValue"):
            return operation.attributes["val"].blobFileValue
    raise AssertionError


def weights_at(name: str) -> Callable[[Path], None]:
    def change(model: Any) -> None:
        first_blob(model).fileName = name

    return lambda package: edit_program(package, change)


def far_offset(package: Path) -> None:
    def change(model: Any) -> None:
        first_blob(model).offset = 2**40

    edit_program(package, change)


def shorten(name: str, keep: float) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        data = (package / name).read_bytes()
        (package / name).write_bytes(data[: int(len(data) * keep)])

    return damage


def wipe_weights(package: Path) -> None:
    (package / WEIGHTS).write_bytes(bytes((package / WEIGHTS).stat().st_size))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda p: (p / WEIGHTS).unlink(), "it lacks Data/com.apple.CoreML/weights/we"),
    "no folder of weights": (lambda p: shutil.rmtree((p / WEIGHTS).parent), "it lacks Data/com"),
    "cut weights": (shorten(WEIGHTS, 0.5), r"weight\.bin is cut or altered"),
    "almost whole weights": (shorten(WEIGHTS, 0.999), r"weight\.bin is cut or altered"),
    "other weights": (wipe_weights, r"weight\.bin is cut or altered"),
    "a far offset": (far_offset, r"weight\.bin is cut or altered"),
    "no program": (lambda p: (p / PROGRAM).unlink(), r"it lacks Data/com.apple.CoreML/model\.ml"),
    "a cut program": (shorten(PROGRAM, 0.5), r"model\.mlmodel can't be read"),
    "a cut manifest": (shorten("Manifest.json", 0.5), r"Manifest\.json can't be read"),
    "an empty manifest": (shorten("Manifest.json", 0), r"Manifest\.json can't be read"),
    "a manifest of another kind": (
        lambda p: (p / "Manifest.json").write_text('["itemInfoEntries"]'),
        r"Manifest\.json can't be read",
    ),
    "a manifest without its root": (
        lambda p: edit_manifest(p, lambda manifest: manifest.pop("rootModelIdentifier")),
        r"Manifest\.json can't be read",
    ),
    "a path upwards": (move_item("../../../model.mlmodel"), "names the path '../../../model"),
    "a path upwards inside": (move_item("com.apple.CoreML/../../x"), "names the path 'com.apple"),
    "an absolute path": (move_item("/etc/passwd"), "names the path '/etc/passwd'"),
    "a path that is no text": (move_item(5), "names the path '5'"),
    "a path with a line break": (move_item("model.mlmodel\n"), "names the path"),
    "a folder as program": (move_item("com.apple.CoreML"), "is not a program"),
    "weights upwards": (weights_at("@model_path/../../../x.bin"), "names the weights '@model_path"),
    "absolute weights": (weights_at("/etc/passwd"), "names the weights '/etc/passwd'"),
    "absolute weights beside": (weights_at("@model_path//etc/passwd"), "names the weights"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_package_is_refused(package: Path, damage: str) -> None:
    change, says = DAMAGES[damage]
    change(package)
    with pytest.raises(ModelCorrupt, match=says) as caught:
        read_package(package / "Manifest.json")
    assert caught.value.message.startswith("decoder.mlpackage can't be used: ")
    assert caught.value.hint


def test_a_model_of_another_kind(package: Path) -> None:
    def change(model: Any) -> None:
        model.neuralNetwork.SetInParent()

    edit_program(package, change)
    with pytest.raises(NotSupported, match="holds no ML program"):
        read_package(package / "Manifest.json")


def test_packages_in_each_others_place(
    smolvlm_coreml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    files = coreml_files(smolvlm_coreml)
    roles = {
        **files.roles,
        "vision_encoder": files.roles["decoder"],
        "decoder": files.roles["vision_encoder"],
    }
    swapped = ModelFiles("swapped", smolvlm_coreml, roles)
    with pytest.raises(ModelCorrupt, match="does not make image_features from pixel_values"):
        CoreMLVisionEncoder(swapped, OPTIONS)
    with pytest.raises(ModelCorrupt, match="does not make logits from inputs_embeds"):
        CoreMLLanguageModel(swapped, OPTIONS)
    with pytest.raises(ModelCorrupt, match="has no decoder for Core ML"):
        CoreMLLanguageModel(ModelFiles("empty", smolvlm_coreml, {}), OPTIONS)


def set_range(name: str, dimension: int, low: int, high: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        (port,) = (p for p in model.description.input if p.name == name)
        sizes = port.type.multiArrayType.shapeRange.sizeRanges[dimension]
        sizes.lowerBound, sizes.upperBound = low, high

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_range("inputs_embeds", 1, 8, 8), "one by one and in chunks"),
        (set_range("inputs_embeds", 2, 1, 64), "has another shape"),
        (set_range("causal_mask", 3, 1, 128), "takes 256 positions at once and holds 128"),
        (lambda model: model.description.ClearField("state"), "one cache of keys"),
    ],
)
def test_a_decoder_of_another_shape(
    package: Path,
    smolvlm_coreml: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], None],
    says: str,
) -> None:
    install(monkeypatch)
    edit_program(package, change)
    roles = {**coreml_files(smolvlm_coreml).roles, "decoder": package / "Manifest.json"}
    with pytest.raises(ModelCorrupt, match=says):
        CoreMLLanguageModel(ModelFiles("other", package, roles), OPTIONS)

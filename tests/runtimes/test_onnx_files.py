"""Model files that are missing, altered or of a kind the ONNX runtime can't take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from mini_model import Mini, make_weights, write_decoder, write_embeddings, write_model

from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.errors import EdgeVLMError, ModelCorrupt, NotSupported
from edgevlm.runtimes import get_runtime

ROLES = ("vision_encoder", "embed_tokens", "decoder")


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return write_model(tmp_path, Mini())


def load(files: ModelFiles) -> None:
    runtime = get_runtime("onnx")
    runtime.load_vision(files, LoadOptions(1)).close()
    runtime.load_language(files, LoadOptions(1)).close()


def refused(
    files: ModelFiles, kind: type[EdgeVLMError], text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Loading fails with one clear line and a hint, and ONNX Runtime prints nothing."""
    with pytest.raises(kind, match=text) as caught:
        load(files)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert "ONNXRuntimeError" not in caught.value.message
    assert capfd.readouterr() == ("", "")


def edit(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        if value.name == old:
            value.name = new
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def test_whole_files_load(files: ModelFiles) -> None:
    load(files)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_without_a_file(
    files: ModelFiles, role: str, capfd: pytest.CaptureFixture[str]
) -> None:
    roles = {name: path for name, path in files.roles.items() if name != role}
    refused(ModelFiles("mini", files.folder, roles), ModelCorrupt, f"mini has no {role}", capfd)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "half", "altered"])
def test_a_damaged_file(
    files: ModelFiles, role: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = files.roles[role]
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        altered = whole[:40] + bytes(b ^ 0xFF for b in whole[40:140]) + whole[140:]
        half = whole[: len(whole) // 2]
        path.write_bytes(
            {"empty": b"", "text": b"a text", "half": half, "altered": altered}[damage]
        )
    refused(files, ModelCorrupt, rf"{role}\.onnx", capfd)


@pytest.mark.parametrize("damage", ["missing", "half"])
def test_external_weights(
    files: ModelFiles, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = files.roles["decoder"]
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="decoder.onnx_data",
        size_threshold=256,
    )
    load(files)
    weights = files.folder / "decoder.onnx_data"
    whole = weights.read_bytes()
    weights.unlink()
    if damage == "half":
        weights.write_bytes(whole[: len(whole) // 2])
    refused(files, ModelCorrupt, r"decoder\.onnx is broken or incomplete: .*xternal", capfd)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda model: setattr(model, "ir_version", 99), "Unsupported model IR version: 99"),
        (lambda model: setattr(model.opset_import[0], "version", 99), "Opset 99"),
        (lambda model: setattr(model.graph.node[3], "op_type", "Later"), "No Op registered"),
    ],
    ids=["format", "opset", "operator"],
)
def test_a_file_newer_than_the_runtime(
    files: ModelFiles,
    change: Callable[[onnx.ModelProto], None],
    text: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    edit(files.roles["decoder"], change)
    refused(files, NotSupported, text, capfd)


@pytest.mark.parametrize(
    ("role", "old", "new", "kind", "text"),
    [
        ("decoder", "inputs_embeds", "input_ids", ModelCorrupt, "takes no inputs_embeds"),
        ("decoder", "attention_mask", "mask", ModelCorrupt, "takes no attention_mask"),
        ("decoder", "position_ids", "cache_position", NotSupported, "'cache_position'"),
        ("decoder", "logits", "hidden", ModelCorrupt, "gives no logits"),
        ("decoder", "present.1.key", "new.1.key", ModelCorrupt, r"gives no present\.1\.key"),
        ("decoder", "past_key_values.0.key", "past_key_values.5.key", ModelCorrupt, "one key and"),
        ("vision_encoder", "pixel_values", "pixels", ModelCorrupt, "does not make image_features"),
        ("vision_encoder", "pixel_attention_mask", "sizes", NotSupported, "'sizes'"),
    ],
)
def test_another_layout(
    files: ModelFiles,
    role: str,
    old: str,
    new: str,
    kind: type[EdgeVLMError],
    text: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    edit(files.roles[role], lambda model: rename(model, old, new))
    refused(files, kind, text, capfd)


def test_a_number_type_that_numpy_lacks(
    files: ModelFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    def widen(model: onnx.ModelProto) -> None:
        (node,) = model.graph.node
        node.output[0] = "narrow"
        model.graph.node.append(
            onnx.helper.make_node(
                "Cast", ["narrow"], ["inputs_embeds"], to=onnx.TensorProto.BFLOAT16
            )
        )
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16

    edit(files.roles["embed_tokens"], widen)
    refused(files, NotSupported, r"'inputs_embeds' as tensor\(bfloat16\)", capfd)


def test_parts_of_two_models(files: ModelFiles, capfd: pytest.CaptureFixture[str]) -> None:
    other = Mini(hidden=64)
    write_embeddings(files.roles["embed_tokens"], other, make_weights(other))
    refused(files, ModelCorrupt, "embeddings of another width", capfd)


def test_a_graph_that_loads_and_cannot_run(
    files: ModelFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = make_weights(Mini())
    weights["position"] = weights["position"][:1]
    write_decoder(files.roles["decoder"], Mini(), weights)
    refused(files, ModelCorrupt, "a first run fails", capfd)


@pytest.mark.parametrize("config", [None, "{", "[]", "[" * 100_000, {}, {"text_config": 5}])
def test_a_configuration_without_a_context_length(
    files: ModelFiles, config: object, capfd: pytest.CaptureFixture[str]
) -> None:
    path = files.folder / "config.json"
    path.unlink()
    if config is not None:
        path.write_text(config if isinstance(config, str) else json.dumps(config))
    refused(files, ModelCorrupt, "gives no max_position_embeddings", capfd)


@pytest.mark.parametrize("length", ["many", "77", True, -1, 10**9, 1.5])
def test_a_context_length_that_is_none(
    files: ModelFiles, length: object, capfd: pytest.CaptureFixture[str]
) -> None:
    config = {"max_position_embeddings": length}
    (files.folder / "config.json").write_text(json.dumps(config))
    refused(files, ModelCorrupt, "max_position_embeddings is", capfd)


def test_the_context_length_of_a_text_model(files: ModelFiles) -> None:
    (files.folder / "config.json").write_text(json.dumps({"max_position_embeddings": 77}))
    model = get_runtime("onnx").load_language(files, LoadOptions(1))
    assert model.context_length == 77
    logits = model.new_context().extend([np.arange(77) % 37], _cancel())
    assert logits.shape == (37,)


def _cancel():  # type: ignore[no-untyped-def]
    from edgevlm.engine.cancel import Cancel

    return Cancel()

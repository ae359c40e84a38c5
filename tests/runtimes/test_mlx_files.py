"""MLX folders that are not what they should be: each a clear error, and no code is run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_factory import OPTIONS, MlxParts, mlx_files
from smolvlm_factory import Dims, make_random_model

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.models.mlx_export import export_mlx
from edgevlm.runtimes import get_runtime
from edgevlm.runtimes.mlx_decoder import MlxLanguageModel
from edgevlm.runtimes.mlx_loading import load_folder
from edgevlm.runtimes.mlx_thread import on_mlx_thread
from edgevlm.runtimes.mlx_vision import MlxVisionEncoder

WEIGHTS = "model.safetensors"
IDS = np.arange(5, 45)
EVIL = "raise SystemExit('code of the checkpoint was run')\n"


@pytest.fixture
def folder(smolvlm_source: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(smolvlm_source, copy)
    return copy


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    weights = dict(mx.load(str(folder / WEIGHTS)))
    mx.eval(weights)
    change(weights)
    mx.save_safetensors(str(folder / WEIGHTS), weights, {"format": "pt"})


def load(folder: Path) -> MlxLanguageModel:
    return MlxLanguageModel(mlx_files(folder), OPTIONS)


def logits(folder: Path) -> Any:
    return load(folder).new_context().extend([IDS], Cancel())


def test_code_of_a_checkpoint_is_never_run(folder: Path, smolvlm_source: Path) -> None:
    (folder / "modeling.py").write_text(EVIL)
    (folder / "__init__.py").write_text(EVIL)
    auto_map = {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"}
    edit_config(folder, lambda config: config.update(auto_map=auto_map))
    np.testing.assert_array_equal(logits(folder), logits(smolvlm_source))
    edit_config(folder, lambda config: config.update(model_file="modeling.py"))
    for part in (MlxLanguageModel, MlxVisionEncoder):
        with pytest.raises(NotSupported, match=r"Python code of its own .*model_file"):
            part(mlx_files(folder), OPTIONS)


def test_transformers_is_left_as_it_was(folder: Path) -> None:
    from transformers import AutoProcessor

    before = AutoProcessor.__dict__["from_pretrained"]
    load(folder)
    assert AutoProcessor.__dict__["from_pretrained"] is before


@pytest.mark.parametrize(
    "model_type", ["../evil", "os.path", "no_such_model", "smolvlm.config", "cache", "bert"]
)
def test_a_type_that_mlx_does_not_have(folder: Path, model_type: str) -> None:
    edit_config(folder, lambda config: config.update(model_type=model_type))
    with pytest.raises((NotSupported, ModelCorrupt)):
        load(folder)


def remove(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda weights: weights.pop(name)


def put(name: str, *shape: int) -> Callable[[dict[str, Any]], object]:
    return lambda weights: weights.update({name: mx.zeros(shape)})


NORM = "model.text_model.norm.weight"
FC1 = "model.vision_model.encoder.layers.0.mlp.fc1.bias"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (remove(NORM), "language_model.norm.weight"),
        (remove(FC1), "vision_model.encoder.layers.0.mlp.fc1.bias"),
        (put(NORM, 65), "language_model.norm.weight"),
        (put("model.text_model.layers.7.extra", 2), "language_model.layers.7.extra"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    folder: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    edit_weights(folder, change)
    with pytest.raises(ModelCorrupt, match=named.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x10" + b"\0" * 7 + b"{}"])
def test_weights_that_are_no_safetensors(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelCorrupt, match="contradicts itself"):
        load(folder)


def test_weights_that_end_early(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-1000])
    with pytest.raises(ModelCorrupt, match="contradicts itself"):
        load(folder)


def in_text(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["text_config"].update(fields)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (in_text(num_hidden_layers=10**9), "num_hidden_layers"),
        (in_text(num_hidden_layers="two"), "num_hidden_layers"),
        (in_text(hidden_size=-1), "contradicts itself"),
        (in_text(hidden_size=None), "contradicts itself"),
        (in_text(num_attention_heads=0), "contradicts itself"),
        (in_text(max_position_embeddings=0), "max_position_embeddings"),
        (in_text(rope_theta="big"), "rope_theta"),
        (in_text(rope_parameters={"rope_type": "default"}, rope_theta=None), "rope_theta"),
        (lambda config: config.update(text_config=[]), "text_config"),
        (lambda config: config.update(model_type=None), "model_type"),
    ],
)
def test_numbers_that_can_not_be(
    folder: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edit_config(folder, change)
    with pytest.raises(ModelCorrupt, match=says):
        load(folder)


HEAD = "language_model.lm_head"


@pytest.fixture(scope="module")
def few_bits(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few-bits")
    export_mlx(smolvlm_source, folder, bits=4)
    return folder


@pytest.mark.parametrize(
    "lie",
    [
        {"group_size": 0},
        {"group_size": 7},
        {"group_size": -64},
        {"group_size": 10**12},
        {"group_size": None},
        {"bits": 0},
        {"bits": 3},
        {"bits": 8, "group_size": 32},
        {"bits": 4.5},
        {"bits": "4"},
        {"mode": "mxfp4"},
        {"mode": 4},
        {HEAD: {"bits": 8, "group_size": 0}},
        {HEAD: {"bits": 8}},
        {HEAD: {"bits": 4, "group_size": 64}},
    ],
    ids=str,
)
def test_quantization_that_the_weights_do_not_have(
    few_bits: Path, tmp_path: Path, lie: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(few_bits, tmp_path / "model"))
    edit_config(folder, lambda config: config["quantization"].update(lie))
    with pytest.raises(ModelCorrupt):
        load(folder)


def test_a_folder_with_everything_at_4_bits(tmp_path: Path) -> None:
    """As mlx-community's first ones: the tower and its positions too, told by two numbers."""
    dims = Dims(vision_hidden=64, vision_intermediate=128)
    whole = make_random_model(tmp_path / "whole", dims=dims, variant="idefics3")
    packed = Path(shutil.copytree(whole, tmp_path / "packed"))

    def pack() -> None:
        model = load_folder(whole).model
        nn.quantize(model, 64, 4, class_predicate=_is_packed)
        weights = dict(tree_flatten(model.parameters()))
        assert "vision_model.embeddings.position_embedding.scales" in weights
        mx.save_safetensors(str(packed / WEIGHTS), weights)

    on_mlx_thread(pack)
    edit_config(packed, lambda c: c.update(quantization={"group_size": 64, "bits": 4}))
    parts, expected = MlxParts(packed), MlxParts(whole)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = expected.family.preprocess(pixels)
    rows = [each.vision.encode(image, Cancel()) for each in (parts, expected)]
    assert np.corrcoef(*(each.ravel() for each in rows))[0, 1] > 0.95
    found = parts.language.new_context().extend([IDS], Cancel())
    assert np.corrcoef(found, logits(whole))[0, 1] > 0.95


def _is_packed(path: str, module: Any) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 64 == 0


def test_quantization_that_is_no_object(few_bits: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(few_bits, tmp_path / "model"))
    edit_config(folder, lambda config: config.update(quantization=4))
    with pytest.raises(ModelCorrupt, match="quantization is no object"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (in_text(hidden_act="gelu"), "decoder activation 'gelu'"),
        (in_text(rope_scaling={"rope_type": "linear", "factor": 2.0}), "rotary embedding 'linear'"),
        (lambda config: config["vision_config"].update(hidden_act="gelu"), "vision activation"),
        (lambda config: config.update(quantization_config={"quant_method": "awq"}), "quantised"),
    ],
)
def test_what_mlx_would_compute_otherwise(
    folder: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edit_config(folder, change)
    with pytest.raises(NotSupported, match=says):
        load(folder)


def test_the_rotary_base_is_read_where_transformers_5_writes_it(
    folder: Path, smolvlm_source: Path
) -> None:
    def move(config: dict[str, Any]) -> None:
        theta = config["text_config"].pop("rope_theta")
        parameters = {"rope_type": "default", "rope_theta": theta}
        config["text_config"]["rope_parameters"] = parameters

    edit_config(folder, move)
    np.testing.assert_array_equal(logits(folder), logits(smolvlm_source))


def test_a_head_that_is_the_embeddings(folder: Path, smolvlm_source: Path) -> None:
    edit_weights(folder, remove("lm_head.weight"))
    with pytest.raises(ModelCorrupt, match=r"lm_head\.weight"):
        load(folder)
    edit_config(folder, in_text(tie_word_embeddings=True))
    tied = logits(folder)
    # The default, written out in the part, says nothing against the whole.
    edit_config(folder, in_text(tie_word_embeddings=False))
    edit_config(folder, lambda config: config.update(tie_word_embeddings=True))
    np.testing.assert_array_equal(tied, logits(folder))
    table = dict(mx.load(str(folder / WEIGHTS)))["model.text_model.embed_tokens.weight"]
    mx.eval(table)
    edit_weights(folder, lambda weights: weights.update({"lm_head.weight": table}))
    np.testing.assert_array_equal(tied, logits(folder))
    assert abs(tied - logits(smolvlm_source)).max() > 0.1


def split(folder: Path) -> dict[str, str]:
    """Two shards and their index, whose weight map is returned."""
    weights = dict(mx.load(str(folder / WEIGHTS)))
    mx.eval(weights)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    half = len(names) // 2
    weight_map = {}
    for index, chosen in enumerate((names[:half], names[half:]), 1):
        shard = f"model-0000{index}-of-00002.safetensors"
        mx.save_safetensors(str(folder / shard), {name: weights[name] for name in chosen})
        weight_map |= dict.fromkeys(chosen, shard)
    return weight_map


def test_shards_and_their_index(folder: Path, smolvlm_source: Path) -> None:
    weight_map = split(folder)
    first = mlx_files(folder, "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"

    def found() -> Any:
        return MlxLanguageModel(first, OPTIONS).new_context().extend([IDS], Cancel())

    expected = logits(smolvlm_source)
    np.testing.assert_array_equal(found(), expected)
    (folder / "consolidated.safetensors").write_bytes(b"of another format")
    index.write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(found(), expected)
    for name in ("../outside.safetensors", "/etc/passwd", "model.bin"):
        index.write_text(json.dumps({"weight_map": {**weight_map, NORM: name}}))
        with pytest.raises(ModelCorrupt, match="no file beside it"):
            found()
    index.write_text(json.dumps({"weight_map": {**weight_map, NORM: "x.safetensors"}}))
    with pytest.raises(ModelCorrupt, match=r"lacks x\.safetensors"):
        found()
    index.write_text("{}")
    with pytest.raises(ModelCorrupt, match="names no files"):
        found()


def test_bfloat16_weights_compute_in_float32_without_a_gpu(
    folder: Path, smolvlm_source: Path
) -> None:
    def halve(weights: dict[str, Any]) -> None:
        weights.update({name: array.astype(mx.bfloat16) for name, array in weights.items()})

    edit_weights(folder, halve)
    parts = MlxParts(folder)
    found = parts.language.new_context().extend([IDS], Cancel())
    assert abs(found - logits(smolvlm_source)).max() < 0.3


def test_a_model_without_mlx_files(tmp_path: Path) -> None:
    runtime = get_runtime("mlx")
    assert runtime.unavailable() is None
    with pytest.raises(ModelCorrupt, match="no weights for MLX"):
        runtime.load_language(ModelFiles("other", tmp_path, {}), OPTIONS)
    with pytest.raises(ModelCorrupt, match=r"config\.json can't be read"):
        runtime.load_vision(mlx_files(tmp_path), OPTIONS)


def test_mlx_without_its_machine_part(tmp_path: Path) -> None:
    """As after `pip install mlx-vlm` on Linux."""
    code = """
import sys
from pathlib import Path
sys.modules["mlx.core"] = None
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.errors import NotSupported
from edgevlm.runtimes.mlx import MlxRuntime
for load in (MlxRuntime().load_language, MlxRuntime().load_vision):
    try:
        load(ModelFiles("m", Path("."), {}), LoadOptions(1))
    except NotSupported as error:
        print(error.exit_code, error.hint)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    line = "4 Install it: pip install --upgrade 'edgevlm[mlx]'\n"
    assert found.stdout == 2 * line

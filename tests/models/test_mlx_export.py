"""From a Hugging Face folder to an MLX one: what it costs, and that mlx-vlm takes it too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_factory import MlxParts
from mlx_vlm.utils import load_model
from smolvlm_factory import Dims, make_random_model

from edgevlm.engine.cancel import Cancel
from edgevlm.errors import ModelCorrupt, NotSupported, UsageError
from edgevlm.models.layouts import discover
from edgevlm.models.mlx_export import export, export_mlx
from edgevlm.models.safetensors import SafetensorsFile

IDS = np.arange(5, 45)


def logits(folder: Path) -> Any:
    return MlxParts(folder).language.new_context().extend([IDS], Cancel())


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_32_bits_are_the_source(smolvlm_source: Path, tmp_path: Path) -> None:
    export_mlx(smolvlm_source, tmp_path, bits=32, vision_bits=32)
    np.testing.assert_array_equal(logits(tmp_path), logits(smolvlm_source))
    assert "quantization" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(("bits", "nearest"), [(16, 0.02), (8, 0.3), (4, 4.0)])
def test_fewer_bits_come_near(
    smolvlm_source: Path, tmp_path: Path, bits: int, nearest: float
) -> None:
    export_mlx(smolvlm_source, tmp_path, bits=bits)
    expected, found = logits(smolvlm_source), logits(tmp_path)
    assert 0 < abs(found - expected).max() < nearest
    assert np.corrcoef(found, expected)[0, 1] > 0.9


def test_the_weights_are_those_of_mlx_own_quantizer(smolvlm_source: Path, tmp_path: Path) -> None:
    export_mlx(smolvlm_source, tmp_path, bits=4)
    source, made = (SafetensorsFile(f / "model.safetensors") for f in (smolvlm_source, tmp_path))
    name = "layers.1.mlp.up_proj"
    original = mx.array(source.read(f"model.text_model.{name}.weight"))
    weight, scales, biases = mx.quantize(original, group_size=64, bits=4)
    prefix = f"language_model.{name}"
    np.testing.assert_array_equal(made.read(f"{prefix}.weight"), np.array(weight))
    for kind, expected in (("scales", scales), ("biases", biases)):
        halved = np.array(expected.astype(mx.float16))
        np.testing.assert_array_equal(made.read(f"{prefix}.{kind}"), halved)
    patches = made.read("vision_model.embeddings.patch_embedding.weight")
    assert patches.dtype == np.float16
    quantization = json.loads((tmp_path / "config.json").read_text())["quantization"]
    assert (quantization["bits"], quantization["group_size"]) == (4, 64)
    assert quantization["language_model.lm_head"] == {"group_size": 64, "bits": 8}
    assert f"vision_model.{name}.scales" not in made


@pytest.mark.parametrize("widths", [(4, 16), (8, 8), (4, 4)])
def test_mlx_vlm_itself_loads_it(
    smolvlm_source: Path, tmp_path: Path, widths: tuple[int, int]
) -> None:
    bits, vision_bits = widths
    export_mlx(smolvlm_source, tmp_path, bits=bits, vision_bits=vision_bits)
    model = load_model(tmp_path)
    model.set_dtype(mx.float32)
    theirs = np.array(model.language_model(mx.array(IDS)[None]).logits[0, -1])
    np.testing.assert_allclose(logits(tmp_path), theirs, rtol=0, atol=1e-3)


def test_the_folder_is_one_that_the_store_takes(smolvlm_source: Path, tmp_path: Path) -> None:
    (smolvlm_source / "modeling.py").write_text("raise SystemExit\n")
    try:
        export_mlx(smolvlm_source, tmp_path)
    finally:
        (smolvlm_source / "modeling.py").unlink()
    layout = discover(files_of(tmp_path), "mlx", "it")
    assert layout.roles == {"weights": "model.safetensors"}
    assert {"tokenizer.json", "chat_template.jinja", "preprocessor_config.json"} <= set(
        layout.paths
    )
    assert files_of(tmp_path) == files_of(smolvlm_source) - {"modeling.py"}


def test_widths_that_groups_do_not_divide(tmp_path: Path) -> None:
    dims = Dims(hidden=96, intermediate=160, heads=6, kv_heads=3)
    source = make_random_model(tmp_path / "source", dims=dims)
    export_mlx(source, tmp_path / "made")
    quantization = json.loads((tmp_path / "made" / "config.json").read_text())["quantization"]
    up = "language_model.layers.0.mlp.up_proj"
    assert quantization[up] == {"group_size": 32, "bits": 4}
    assert np.corrcoef(logits(tmp_path / "made"), logits(source))[0, 1] > 0.9
    load_model(tmp_path / "made")


def test_large_models_are_written_in_shards(
    smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    export_mlx(smolvlm_source, whole)
    monkeypatch.setattr(export, "_SHARD_BYTES", 40_000)
    export_mlx(smolvlm_source, cut)
    shards = sorted(cut.glob("*.safetensors"))
    assert len(shards) > 3
    shards[0].rename(cut / "model.safetensors")
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    names = {name for path in shards[1:] for name in SafetensorsFile(path)}
    assert names | set(SafetensorsFile(cut / "model.safetensors")) == set(index["weight_map"])
    (cut / "model.safetensors").rename(shards[0])
    load_model(cut)


def test_its_progress_adds_up(smolvlm_source: Path, tmp_path: Path) -> None:
    class Recorder:
        total = done = 0
        finished = False

        def start(self, total: int, label: str) -> None:
            self.total = total

        def advance(self, n: int) -> None:
            self.done += n

        def note(self, text: str) -> None: ...

        def finish(self) -> None:
            self.finished = True

    recorder = Recorder()
    export_mlx(smolvlm_source, tmp_path, progress=recorder)
    assert recorder.total == recorder.done > 0
    assert recorder.finished


def test_a_source_that_can_not_be_converted(smolvlm_source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    export_mlx(smolvlm_source, made)
    with pytest.raises(NotSupported, match="quantised already"):
        export_mlx(made, tmp_path / "again")
    broken = tmp_path / "broken"
    shutil.copytree(smolvlm_source, broken)
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelCorrupt):
        export_mlx(broken, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(UsageError, match="3 bits"):
        export_mlx(smolvlm_source, tmp_path, bits=3)
    with pytest.raises(UsageError, match="Groups"):
        export_mlx(smolvlm_source, tmp_path, group_size=48)

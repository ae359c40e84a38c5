"""Checkpoints of 16 bits, as the published ones are: each exporter makes of them what it makes
of the same numbers at 32 bits, and MLX runs them as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from mlx_factory import MlxParts
from safetensors.torch import load_file, save_file

from edgevlm.engine.cancel import Cancel
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.coreml_export.decoder import load_decoder
from edgevlm.models.coreml_export.vision import load_vision
from edgevlm.models.gguf_export import export_gguf
from edgevlm.models.mlx_export import export_mlx
from edgevlm.models.onnx_export import export_onnx
from edgevlm.models.safetensors import SafetensorsFile
from edgevlm.models.vlm_config import read_config

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=str)
def sources(
    request: pytest.FixtureRequest, smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """One model at 16 bits, and the same numbers at 32."""
    folders = []
    tensors = load_file(smolvlm_source / WEIGHTS)
    for name in ("half", "wide"):
        folder = Path(shutil.copytree(smolvlm_source, tmp_path_factory.mktemp(name) / "source"))
        half = {key: tensor.to(request.param) for key, tensor in tensors.items()}
        stored = half if name == "half" else {key: t.float() for key, t in half.items()}
        save_file(stored, folder / WEIGHTS, {"format": "pt"})
        folders.append(folder)
    return folders[0], folders[1]


def test_gguf(sources: tuple[Path, Path], tmp_path: Path) -> None:
    for number, source in enumerate(sources):
        export_gguf(source, tmp_path / str(number), quantize="f32", vision_bits=32, name="it")
    for name in ("it-F32.gguf", "mmproj-it-F32.gguf"):
        half, wide = (
            {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / n / name).tensors}
            for n in "01"
        )
        assert half.keys() == wide.keys()
        for tensor, data in wide.items():
            np.testing.assert_array_equal(half[tensor], data)


def test_onnx(sources: tuple[Path, Path], tmp_path: Path) -> None:
    for number, source in enumerate(sources):
        export_onnx(source, tmp_path / str(number), decoder_bits=32, vision_bits=32)
    half, wide = (sorted((tmp_path / n / "onnx").iterdir()) for n in "01")
    assert [path.read_bytes() for path in half] == [path.read_bytes() for path in wide]


def test_coreml(sources: tuple[Path, Path]) -> None:
    """The modules that are converted: what comes after sees no more of the source."""
    half, wide = (modules_of(source) for source in sources)
    assert half.keys() == wide.keys()
    for name, tensor in wide.items():
        assert torch.equal(half[name], tensor), name


def modules_of(source: Path) -> dict[str, Any]:
    config, checkpoint = read_config(source), Checkpoint(source)
    decoder = load_decoder(checkpoint, config, 64)
    vision = load_vision(checkpoint, config.vision, config.text.hidden_size)
    modules = torch.nn.ModuleDict({"decoder": decoder, "vision": vision})
    return dict(modules.state_dict())


def test_mlx(sources: tuple[Path, Path], tmp_path: Path) -> None:
    for number, source in enumerate(sources):
        export_mlx(source, tmp_path / str(number), bits=32, vision_bits=32)
    half, wide = (SafetensorsFile(tmp_path / n / WEIGHTS) for n in "01")
    assert set(half) == set(wide)
    for name in wide:
        np.testing.assert_array_equal(half.read(name), wide.read(name))
    # At 16 bits they keep the type that they came in: bfloat16 reaches further than float16.
    export_mlx(sources[0], tmp_path / "kept", bits=16)
    kept, source = (mx.load(str(folder / WEIGHTS)) for folder in (tmp_path / "kept", sources[0]))
    assert {array.dtype for array in kept.values()} == {a.dtype for a in source.values()}


def test_mlx_runs_them_as_they_are(sources: tuple[Path, Path]) -> None:
    half, wide = map(MlxParts, sources)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = wide.family.preprocess(pixels)
    rows = [parts.vision.encode(image, Cancel()) for parts in (half, wide)]
    np.testing.assert_array_equal(*rows)
    logits = [
        parts.language.new_context().extend([np.arange(5, 25), rows[0]], Cancel())
        for parts in (half, wide)
    ]
    np.testing.assert_array_equal(*logits)

"""The built-in model's decoder for MLX: the GGUF's grid to the letter, and the same answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_factory import OPTIONS, mlx_files
from test_tiny_assembly import SMALL, RandomDecoder, random_lora

from edgevlm import Session
from edgevlm.engine.cancel import Cancel
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.models.gguf import GgufFile
from edgevlm.models.safetensors import SafetensorsFile
from edgevlm.models.tiny_mlx import assemble, write_mlx
from edgevlm.runtimes.mlx_decoder import MlxLanguageModel
from edgevlm.runtimes.mlx_vision import MlxVisionEncoder

PHOTO = Path(__file__).parents[2] / "examples" / "photo.jpg"
CONFIG = {
    "model_type": "edgevlm_tiny",
    "text_config": {
        "model_type": "llama",
        "hidden_size": SMALL.hidden_size,
        "intermediate_size": SMALL.intermediate_size,
        "num_hidden_layers": SMALL.n_layers,
        "num_attention_heads": SMALL.n_heads,
        "num_key_value_heads": SMALL.n_kv_heads,
        "vocab_size": SMALL.vocab_size,
        "max_position_embeddings": SMALL.max_length,
        "rms_norm_eps": SMALL.rms_norm_eps,
        "rope_theta": SMALL.rope_theta,
        "tie_word_embeddings": True,
    },
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RandomDecoder:
    return RandomDecoder(tmp_path_factory.mktemp("gguf") / "small.gguf", SMALL)


@pytest.mark.parametrize("lora", [{}, random_lora()], ids=["base", "lora"])
def test_logits_are_those_of_the_dequantised_model(
    small: RandomDecoder, tmp_path: Path, lora: Any
) -> None:
    write_mlx(GgufFile(small.path), SMALL, lora, CONFIG, tmp_path)
    model = MlxLanguageModel(mlx_files(tmp_path), OPTIONS)
    ids = np.random.default_rng(7).integers(0, SMALL.vocab_size, 40)
    with torch.no_grad():
        expected = small.reference(lora)(torch.from_numpy(ids)[None]).logits[0].numpy()
    context = model.new_context()
    found = [context.extend([ids[:30]], Cancel())]
    found += [context.extend([ids[i : i + 1]], Cancel()) for i in range(30, 40)]
    # The norms go from float32 to float16, which those of the real model survive unchanged.
    np.testing.assert_allclose(found, expected[29:], atol=2e-2)


def test_the_grid_is_the_same_to_the_letter(small: RandomDecoder, tmp_path: Path) -> None:
    write_mlx(GgufFile(small.path), SMALL, {}, CONFIG, tmp_path)
    file = SafetensorsFile(tmp_path / "model.safetensors")

    def weight(name: str, bits: int) -> Any:
        packed, *grid = (mx.array(file.read(f"{name}.{k}")) for k in ("weight", "scales", "biases"))
        scales, biases = (each.astype(mx.float32) for each in grid)
        return np.array(mx.dequantize(packed, scales, biases, group_size=32, bits=bits))

    down = weight("language_model.layers.1.mlp.down_proj", 4)
    np.testing.assert_allclose(
        down, small.state["model.layers.1.mlp.down_proj.weight"], rtol=0, atol=1e-6
    )
    query = weight("language_model.layers.0.self_attn.q_proj", 4)
    np.testing.assert_allclose(
        query, small.state["model.layers.0.self_attn.q_proj.weight"], rtol=0, atol=1e-6
    )
    embeddings = weight("language_model.embed_tokens", 8)
    np.testing.assert_allclose(
        embeddings, small.state["model.embed_tokens.weight"], rtol=0, atol=1e-5
    )


def test_same_file_same_bytes(small: RandomDecoder, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_mlx(GgufFile(small.path), SMALL, random_lora(), CONFIG, tmp_path / name)
    one, other = (tmp_path / name / "model.safetensors" for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()


def test_refuses_another_model(tmp_path: Path) -> None:
    other = RandomDecoder(tmp_path / "other.gguf", SMALL, n_layers=3)
    with pytest.raises(ModelCorrupt, match="block_count"):
        assemble(other.path, tmp_path / "folder")


def test_an_adapter_of_another_shape_is_refused(small: RandomDecoder, tmp_path: Path) -> None:
    write_mlx(GgufFile(small.path), SMALL, random_lora(), CONFIG, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["lora_ranks"]["language_model.layers.0.self_attn.q_proj"] = 9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelCorrupt, match=r"layers\.0\.self_attn\.q_proj\.lora_a"):
        MlxLanguageModel(mlx_files(tmp_path), OPTIONS)


def test_it_has_no_eyes_of_its_own(small: RandomDecoder, tmp_path: Path) -> None:
    write_mlx(GgufFile(small.path), SMALL, {}, CONFIG, tmp_path)
    with pytest.raises(NotSupported, match="no vision encoder"):
        MlxVisionEncoder(mlx_files(tmp_path), OPTIONS)


def test_assembly_loads_no_mlx() -> None:
    code = "import sys, edgevlm.models.tiny_mlx; print({'mlx', 'mlx_vlm'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "set()"


def test_the_real_one_says_on_mlx_what_it_says_on_onnx() -> None:
    answers = {}
    for runtime in ("onnx", "mlx"):
        with Session("edgevlm-tiny", runtime=runtime) as session:
            reply = session.ask("What is in this picture?", images=[PHOTO], max_tokens=9)
            answers[runtime] = reply.text
    assert reply.runtime == {"vision": "onnx", "language": "mlx"}
    assert "espresso" in answers["mlx"]
    assert answers["mlx"] == answers["onnx"]

"""The built-in model's decoder on llama.cpp: the GGUF as it came, and the adapter beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from smolvlm_factory import load_reference
from test_tiny_assembly import NAMES, SMALL, RandomDecoder

from edgevlm import Session
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.errors import ModelCorrupt
from edgevlm.models import tiny_llamacpp
from edgevlm.models.llama import GROUPS, LlamaShape
from edgevlm.models.tiny_layout import SMOLLM2_135M
from edgevlm.runtimes.llamacpp_decoder import LlamaCppLanguageModel

PHOTO = Path(__file__).parents[2] / "examples" / "photo.jpg"
# That of tests/smolvlm_factory.py.
SHAPE = LlamaShape(
    hidden_size=64,
    intermediate_size=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    vocab_size=0,
    max_length=8192,
    rms_norm_eps=1e-5,
    rope_theta=1e5,
)


def random_lora() -> dict[str, Any]:
    random = np.random.default_rng(6)
    lora = {}
    for name, rank in (("0.q", 4), ("0.k", 2), ("0.o", 3), ("1.v", 4), ("1.up", 2), ("1.down", 1)):
        part = name[2:]
        group = next(group for group, parts in GROUPS.items() if part in parts)
        sizes = SHAPE.group_size(group)[0], SHAPE.part_size(part)
        lora[f"layers.{name}.A"] = 0.3 * random.standard_normal((sizes[0], rank))
        lora[f"layers.{name}.B"] = 0.3 * random.standard_normal((rank, sizes[1]))
    return {name: array.astype(np.float32) for name, array in lora.items()}


@pytest.fixture(scope="module")
def decoder(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gguf_factory import make_gguf

    return make_gguf(smolvlm_source, tmp_path_factory.mktemp("gguf")).decoder


def logits(decoder: Path, lora: Path | None, ids: Any) -> Any:
    roles = {"decoder": decoder} | ({"lora": lora} if lora else {})
    model = LlamaCppLanguageModel(ModelFiles("x", decoder.parent, roles), LoadOptions(2))
    found = model.new_context().extend([ids], Cancel())
    model.close()
    return found


def test_the_adapter_does_what_its_product_would(
    decoder: Path, smolvlm_source: Path, tmp_path: Path
) -> None:
    lora = random_lora()
    tiny_llamacpp.write_lora(lora, SHAPE, tmp_path / "lora.gguf")
    reference = load_reference(smolvlm_source)
    weights = dict(reference.model.text_model.named_parameters())
    ids = np.arange(5, 25)
    base = reference(input_ids=torch.from_numpy(ids)[None]).logits[0, -1].detach().numpy()
    with torch.no_grad():
        for name in sorted({key[:-2] for key in lora}):
            _, layer, part = name.split(".")
            product = lora[f"{name}.A"] @ lora[f"{name}.B"]
            weights[f"layers.{layer}.{NAMES[part][1]}.weight"] += torch.from_numpy(product).T
        expected = reference(input_ids=torch.from_numpy(ids)[None]).logits[0, -1].numpy()
    assert np.abs(expected - base).max() > 1
    np.testing.assert_allclose(logits(decoder, None, ids), base, atol=1e-4)
    np.testing.assert_allclose(
        logits(decoder, tmp_path / "lora.gguf", ids), expected, rtol=0, atol=1e-3
    )


def test_an_adapter_of_another_decoder_is_refused(decoder: Path, tmp_path: Path) -> None:
    lora = {
        name: array[:, :-16] if name == "layers.1.v.B" else array
        for name, array in random_lora().items()
    }
    tiny_llamacpp.write_lora(lora, SHAPE, tmp_path / "lora.gguf")
    with pytest.raises(ModelCorrupt, match=r"lora\.gguf is no adapter for"):
        logits(decoder, tmp_path / "lora.gguf", np.arange(3))
    (tmp_path / "lora.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelCorrupt, match=r"lora\.gguf is broken or incomplete"):
        logits(decoder, tmp_path / "lora.gguf", np.arange(3))


def test_gguf_tools_can_read_the_adapter(tmp_path: Path) -> None:
    lora = random_lora()
    tiny_llamacpp.write_lora(lora, SHAPE, tmp_path / "lora.gguf")
    reader = GGUFReader(tmp_path / "lora.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == len(lora)
    np.testing.assert_array_equal(tensors["blk.1.ffn_up.weight.lora_a"], lora["layers.1.up.A"].T)
    np.testing.assert_array_equal(tensors["blk.1.ffn_up.weight.lora_b"], lora["layers.1.up.B"].T)


def test_the_decoder_is_not_written_again(tmp_path: Path) -> None:
    decoder = RandomDecoder(tmp_path / "full.gguf", SMOLLM2_135M, repeat=True)
    tiny_llamacpp.assemble(decoder.path, tmp_path / "model")
    assert (tmp_path / "model" / "full.gguf").samefile(decoder.path)
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "lora.gguf"):
        assert (tmp_path / "model" / name).stat().st_size > 100
    assert (tmp_path / "model" / "onnx" / "vision_encoder.onnx").is_file()


def test_refuses_another_model(tmp_path: Path) -> None:
    other = RandomDecoder(tmp_path / "other.gguf", SMALL)
    with pytest.raises(ModelCorrupt, match="the built-in model"):
        tiny_llamacpp.assemble(other.path, tmp_path / "folder")


def test_assembly_loads_no_runtime() -> None:
    code = "import sys, edgevlm.models.tiny_llamacpp; print('llama_cpp' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "False"


def test_the_real_one_says_on_llamacpp_what_it_says_on_onnx() -> None:
    replies = {}
    for runtime in ("onnx", "llamacpp"):
        with Session("edgevlm-tiny", runtime=runtime) as session:
            replies[runtime] = session.ask(
                "What is in this picture?", images=[PHOTO], top_logprobs=5
            )
    ours, theirs = replies["llamacpp"], replies["onnx"]
    assert ours.runtime == {"vision": "onnx", "language": "llamacpp"}
    assert "espresso" in ours.text
    assert [token.id for token in ours.tokens] == [token.id for token in theirs.tokens]
    # Both hold the same 4-bit grid; activations go through 8 bits in blocks of their own.
    logprobs = [[token.logprob for token in reply.tokens] for reply in (ours, theirs)]
    np.testing.assert_allclose(*logprobs, rtol=0, atol=0.25)

"""The built-in model put together from a GGUF file: the same numbers, in the shipped graphs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.models import tiny
from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer
from edgevlm.models.llama import GROUPS, LlamaShape
from edgevlm.models.onnx_export.skeleton import write_skeletons
from edgevlm.models.tiny_layout import SMOLLM2_135M, weights_layout

SMALL = LlamaShape(
    hidden_size=64,
    intermediate_size=96,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    vocab_size=256 + 4,
    max_length=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
)
# GGUF's name, transformers' name.
NAMES = {
    "q": ("attn_q", "self_attn.q_proj"),
    "k": ("attn_k", "self_attn.k_proj"),
    "v": ("attn_v", "self_attn.v_proj"),
    "o": ("attn_output", "self_attn.o_proj"),
    "gate": ("ffn_gate", "mlp.gate_proj"),
    "up": ("ffn_up", "mlp.up_proj"),
    "down": ("ffn_down", "mlp.down_proj"),
}
Q4_1, Q8_0 = GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0


def permuted(weight: Any, n_heads: int) -> Any:
    """The row order of llama.cpp's converter (`LlamaModel.permute`)."""
    rows, columns = weight.shape
    halves = weight.reshape(n_heads, 2, rows // n_heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(weight.shape)


class RandomDecoder:
    """A GGUF file of random weights, and the weights that it stands for.

    `repeat` makes tensors of one size alike, which is quick to write.
    """

    def __init__(
        self, path: Path, shape: LlamaShape, *, repeat: bool = False, **metadata: Any
    ) -> None:
        self.path, self.shape = path, shape
        self._known: dict[tuple[int, int], Any] | None = {} if repeat else None
        self.state: dict[str, Any] = {}
        self._random = np.random.default_rng(5)
        self._writer = GGUFWriter(path, "llama")
        self._metadata(metadata)
        self._tensor("token_embd", "model.embed_tokens", shape.vocab_size, Q8_0)
        self._norm("output_norm", "model.norm")
        for layer in range(shape.n_layers):
            ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
            self._norm(f"{ours}.attn_norm", f"{theirs}.input_layernorm")
            self._norm(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm")
            for part, (gguf_name, name) in NAMES.items():
                self._part(f"{ours}.{gguf_name}", f"{theirs}.{name}", part)
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
        self._writer.close()

    def _metadata(self, changes: dict[str, Any]) -> None:
        writer, shape = self._writer, self.shape
        writer.add_block_count(changes.get("n_layers", shape.n_layers))
        writer.add_embedding_length(shape.hidden_size)
        writer.add_feed_forward_length(shape.intermediate_size)
        writer.add_head_count(shape.n_heads)
        writer.add_head_count_kv(shape.n_kv_heads)
        writer.add_rope_freq_base(shape.rope_theta)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = ["<|im_start|>", *alphabet, "Ġt", "he"]
        tokens += [f"<{n}>" for n in range(shape.vocab_size - len(tokens))]
        types = [TokenType.NORMAL] * len(tokens)
        types[0] = TokenType.CONTROL
        writer.add_tokenizer_model(changes.get("tokenizer", "gpt2"))
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(changes.get("merges", ["Ġ t", "h e"]))

    def _norm(self, gguf_name: str, name: str) -> None:
        weight = 1 + 0.1 * self._random.standard_normal(self.shape.hidden_size, np.float32)
        self._writer.add_tensor(f"{gguf_name}.weight", weight)
        self.state[f"{name}.weight"] = weight

    def _part(self, gguf_name: str, name: str, part: str) -> None:
        group = next(group for group, parts in GROUPS.items() if part in parts)
        columns = self.shape.group_size(group)[0]
        n_heads = {"q": self.shape.n_heads, "k": self.shape.n_kv_heads}.get(part)
        self._tensor(gguf_name, name, self.shape.part_size(part), Q4_1, columns, n_heads)

    def _tensor(
        self,
        gguf_name: str,
        name: str,
        rows: int,
        type_: GGMLQuantizationType,
        columns: int | None = None,
        n_heads: int | None = None,
    ) -> None:
        columns = columns or self.shape.hidden_size
        blocks = self._blocks((rows, columns), type_)
        if self._known is None:
            # Rounding before the rows are permuted is the same as after.
            self.state[f"{name}.weight"] = dequantize(blocks, type_)
        if n_heads:
            blocks = permuted(blocks, n_heads)
        self._writer.add_tensor(f"{gguf_name}.weight", blocks, raw_dtype=type_)

    def _blocks(self, size: tuple[int, int], type_: GGMLQuantizationType) -> Any:
        if self._known and size in self._known:
            return self._known[size]
        # Not centred, so that the minimum of a block is far from -8 levels.
        weight = self._random.standard_normal(size, np.float32) + np.float32(0.3)
        scale = 1.0 if type_ == Q8_0 else 1.5 / size[1] ** 0.5
        blocks = quantize(weight * np.float32(scale), type_)
        if self._known is not None:
            self._known[size] = blocks
        return blocks

    def reference(self, lora: dict[str, Any]) -> LlamaForCausalLM:
        shape, state = self.shape, dict(self.state)
        config = LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.n_kv_heads,
            max_position_embeddings=shape.max_length,
            rms_norm_eps=shape.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
            tie_word_embeddings=True,
        )
        for layer in range(shape.n_layers):
            for part, (_, name) in NAMES.items():
                if f"layers.{layer}.{part}.A" in lora:
                    a, b = (lora[f"layers.{layer}.{part}.{ab}"].astype(np.float32) for ab in "AB")
                    key = f"model.layers.{layer}.{name}.weight"
                    state[key] = state[key] + (a @ b).T
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model = LlamaForCausalLM(config)
        model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
        return model.eval()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RandomDecoder:
    return RandomDecoder(tmp_path_factory.mktemp("gguf") / "small.gguf", SMALL)


def random_lora() -> dict[str, Any]:
    """Several ranks, and layers with some parts of a group only."""
    random = np.random.default_rng(6)
    lora = {}
    for name, rank in (("0.q", 4), ("0.k", 2), ("0.o", 3), ("1.v", 4), ("1.up", 2), ("1.down", 1)):
        part = name[2:]
        group = next(group for group, parts in GROUPS.items() if part in parts)
        sizes = SMALL.group_size(group)[0], SMALL.part_size(part)
        lora[f"layers.{name}.A"] = 0.2 * random.standard_normal((sizes[0], rank))
        lora[f"layers.{name}.B"] = 0.2 * random.standard_normal((rank, sizes[1]))
    return {name: array.astype(np.float16) for name, array in lora.items()}


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options)


def logits(folder: Path, shape: LlamaShape, ids: Any) -> Any:
    embeddings = session(folder / "embed_tokens.onnx").run(None, {"input_ids": ids})[0]
    empty = np.zeros((1, shape.n_kv_heads, 0, shape.head_dim), np.float32)
    past = {
        f"past_key_values.{layer}.{kv}": empty
        for layer in range(shape.n_layers)
        for kv in ("key", "value")
    }
    feeds = {
        "inputs_embeds": embeddings,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
    }
    decoder = session(folder / "decoder_model_merged.onnx")
    return decoder.run(["logits"], feeds | past)[0][0]


@pytest.mark.parametrize("lora", [{}, random_lora()], ids=["base", "lora"])
@pytest.mark.parametrize(("accuracy_level", "tolerance"), [(1, 2e-4), (4, 0.5)])
def test_logits_are_those_of_the_dequantised_model(
    small: RandomDecoder, tmp_path: Path, lora: Any, accuracy_level: int, tolerance: float
) -> None:
    tiny.write_weights(GgufFile(small.path), SMALL, lora, tmp_path / tiny.WEIGHTS_NAME)
    ranks = tiny.lora_ranks(lora)
    write_skeletons(
        SMALL,
        ranks,
        tmp_path,
        accuracy_level=accuracy_level,
        head_accuracy_level=accuracy_level,
        last_logits_only=False,
    )
    ids = np.random.default_rng(7).integers(0, SMALL.vocab_size, (1, 40))
    with torch.no_grad():
        expected = small.reference(lora)(torch.from_numpy(ids)).logits[0].numpy()
    assert expected.std() > 3
    np.testing.assert_allclose(logits(tmp_path, SMALL, ids), expected, atol=tolerance)


def test_an_adapter_changes_the_logits(small: RandomDecoder) -> None:
    ids = torch.arange(40)[None]
    with torch.no_grad():
        base, adapted = (small.reference(lora)(ids).logits for lora in ({}, random_lora()))
    assert (base - adapted).abs().max() > 1


def test_same_file_same_bytes(small: RandomDecoder, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny.write_weights(GgufFile(small.path), SMALL, random_lora(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_refuses_another_model(tmp_path: Path) -> None:
    other = RandomDecoder(tmp_path / "other.gguf", SMALL, n_layers=3)
    with pytest.raises(ModelCorrupt, match=r"block_count = 3, the built-in model 2"):
        tiny.write_weights(GgufFile(other.path), SMALL, {}, tmp_path / "weights.bin")
    with pytest.raises(ModelCorrupt, match="block_count"):
        tiny.assemble(other.path, tmp_path / "folder")


def external_tensors(model: onnx.ModelProto) -> Iterator[tuple[str, dict[str, str], Any]]:
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor.name, {e.key: e.value for e in tensor.external_data}, tensor


def test_shipped_graphs_point_where_the_weights_will_lie(tmp_path: Path) -> None:
    ranks = tiny.lora_ranks(tiny.load_lora())
    layout = weights_layout(SMOLLM2_135M, ranks)
    write_skeletons(SMOLLM2_135M, ranks, tmp_path)
    pointed_at, total = set(), 0
    for name in ("embed_tokens.onnx", "decoder_model_merged.onnx"):
        model = onnx.load(tiny.SHIPPED / name, load_external_data=False)
        assert model.graph == onnx.load(tmp_path / name, load_external_data=False).graph, (
            "run recipes/tiny/export_graphs.py again"
        )
        for tensor_name, place, tensor in external_tensors(model):
            region = layout[tensor_name]
            expected = {
                "location": tiny.WEIGHTS_NAME,
                "offset": str(region.offset),
                "length": str(region.n_bytes),
            }
            assert place == expected
            assert onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type) == region.dtype
            pointed_at.add(tensor_name)
        total += (tiny.SHIPPED / name).stat().st_size
    unused = {f"block_sums.{n}" for n in (576, 1536)}
    assert pointed_at | unused == set(layout)
    assert total < 1_000_000


def test_regions_follow_one_another_on_page_borders() -> None:
    end = 0
    for region in weights_layout(SMOLLM2_135M, {"layers.3.q": 8}).values():
        assert region.offset % 4096 == 0
        assert end <= region.offset < end + 4096
        end = region.offset + region.n_bytes


def test_assembles_a_folder_that_runs(tmp_path: Path) -> None:
    """The whole way at the real size, on random weights, since the real ones are a download."""
    decoder = RandomDecoder(tmp_path / "full.gguf", SMOLLM2_135M, repeat=True)
    tiny.assemble(decoder.path, tmp_path / "model")
    ids = np.arange(3, 11)[None]
    found = logits(tmp_path / "model" / "onnx", SMOLLM2_135M, ids)
    assert found.shape == (1, SMOLLM2_135M.vocab_size)
    assert np.isfinite(found).all()
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        assert (tmp_path / "model" / name).stat().st_size > 100
    assert (tmp_path / "model" / "onnx" / "vision_encoder.onnx").is_file()


def test_assembly_loads_no_onnx_and_no_runtime() -> None:
    code = "import sys, edgevlm.models.tiny; print({'onnx', 'onnxruntime'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "set()"


def test_tokenizer_splits_as_smollm_does(small: RandomDecoder) -> None:
    tokenizer = read_tokenizer(GgufFile(small.path))
    encoding = tokenizer.encode("<|im_start|> the 42\n")
    digits = ["Ġ", "4", "2", "Ċ"]
    assert encoding.tokens == ["<|im_start|>", "Ġt", "he", *digits]
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == "<|im_start|> the 42\n"
    assert tokenizer.decode(encoding.ids) == " the 42\n"


def test_refuses_tokenizers_it_does_not_know(tmp_path: Path) -> None:
    strange = RandomDecoder(tmp_path / "strange.gguf", SMALL, tokenizer="bert")
    with pytest.raises(NotSupported, match="bert"):
        read_tokenizer(GgufFile(strange.path))
    for merges in (["one two three"], ["no such"]):
        broken = RandomDecoder(tmp_path / "broken.gguf", SMALL, merges=merges)
        with pytest.raises(ModelCorrupt):
            read_tokenizer(GgufFile(broken.path))

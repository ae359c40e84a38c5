"""Adapters on ONNX Runtime: merged weights on transformers say what they must do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from decoder_adapters import IDS, MISFITS, Scaled, changed, logits, merged_logits, mixtures, use
from lora_factory import random_lora
from numpy.typing import NDArray

from edgevlm.engine.adapter import LowRank
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.errors import AdapterMismatch, RuntimeFailed
from edgevlm.models.llama import LlamaShape
from edgevlm.models.onnx_export import export_onnx
from edgevlm.models.onnx_export.quantize import dequantize_blocks, quantize_blocks
from edgevlm.models.onnx_export.skeleton import write_skeletons
from edgevlm.models.tiny import WEIGHTS_NAME
from edgevlm.models.tiny_layout import weights_layout
from edgevlm.runtimes.onnx_decoder import OnnxLanguageModel

EXPORTS: dict[str, dict[str, Any]] = {
    "gqa": {"attention": "gqa"},
    "plain": {"attention": "plain"},
    "gqa, inputs added": {"attention": "gqa", "adapters": False},
    "plain, inputs added": {"attention": "plain", "adapters": False},
}


def load(folder: Path) -> OnnxLanguageModel:
    roles = {
        "embed_tokens": folder / "onnx" / "embed_tokens.onnx",
        "decoder": folder / "onnx" / "decoder_model_merged.onnx",
    }
    return OnnxLanguageModel(ModelFiles("random", folder, roles), LoadOptions(threads=1))


@torch.no_grad()
def on_grids(model: Any) -> None:
    """Weights as a 4-bit export rounds them."""
    for name, module in model.model.text_model.named_modules():
        if name.endswith(("_proj", "embed_tokens")):
            _put_on_grid(module.weight, 8 if name == "embed_tokens" else 4)
    _put_on_grid(model.lm_head.weight, 8)


def _put_on_grid(weight: Any, bits: int) -> None:
    levels, scales = quantize_blocks(weight.numpy(), bits)
    weight.copy_(torch.from_numpy(dequantize_blocks(levels, scales, bits)))


@pytest.fixture(scope="module", params=EXPORTS)
def model(
    request: pytest.FixtureRequest, smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OnnxLanguageModel]:
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(smolvlm_source, folder, **EXPORTS[request.param])
    model = load(folder)
    yield model
    model.close()


@pytest.fixture(scope="module")
def mixes(smolvlm_source: Path) -> Mapping[str, Scaled]:
    return mixtures(smolvlm_source)


@pytest.fixture(scope="module")
def merged(mixes: Mapping[str, Scaled], smolvlm_source: Path) -> Mapping[str, NDArray[np.float32]]:
    return {name: merged_logits(smolvlm_source, mix) for name, mix in mixes.items()}


@pytest.mark.parametrize(
    "mix", ["rank 8", "rank 16 with exceptions", "some modules", "two with scales", "three"]
)
def test_as_if_merged(
    model: OnnxLanguageModel,
    mixes: Mapping[str, Scaled],
    merged: Mapping[str, NDArray[np.float32]],
    mix: str,
) -> None:
    context = model.new_context()
    base = logits(context)
    use(model, context, mixes[mix])
    found = logits(context)
    np.testing.assert_allclose(found, merged[mix], atol=1e-3)
    assert np.abs(found - base).max() > 0.5
    context.use_adapters({})
    np.testing.assert_array_equal(logits(context), base)


@pytest.mark.parametrize("adapters", [True, False])
def test_as_if_merged_into_dequantised_weights(
    mixes: Mapping[str, Scaled],
    merged: Mapping[str, NDArray[np.float32]],
    smolvlm_source: Path,
    tmp_path: Path,
    adapters: bool,
) -> None:
    export_onnx(smolvlm_source, tmp_path, decoder_bits=4, exact=True, adapters=adapters)
    model = load(tmp_path)
    context = model.new_context()
    mix = mixes["two with scales"]
    use(model, context, mix)
    found, expected = logits(context), merged_logits(smolvlm_source, mix, on_grids)
    # The head computes the likeliest exactly, and leaves the others their rounding.
    likeliest = np.argsort(expected)[-40:]
    np.testing.assert_allclose(found[likeliest], expected[likeliest], atol=1e-3)
    assert np.abs(found - merged["two with scales"]).max() > 0.1  # not at 32 bits


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("attention", ["gqa", "plain"])
def test_inputs_that_are_left_out_change_no_bit(
    smolvlm_source: Path, tmp_path: Path, attention: Any, bits: int
) -> None:
    rows = []
    for adapters in (True, False):
        folder = tmp_path / str(adapters)
        export_onnx(
            smolvlm_source, folder, attention=attention, decoder_bits=bits, adapters=adapters
        )
        rows.append(logits(load(folder).new_context()))
    np.testing.assert_array_equal(*rows)


def test_inputs_are_named_for_their_modules(smolvlm: Path) -> None:
    graph = onnx.load(smolvlm / "onnx" / "decoder_model_merged.onnx").graph
    inputs = {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name.startswith("lora.layers.1.")
    }
    name = "lora.layers.1."
    assert inputs == {
        f"{name}self_attn.qkv_proj.a": [64, f"{name}self_attn.qkv_proj.rank"],
        f"{name}self_attn.qkv_proj.b": [f"{name}self_attn.qkv_proj.rank", 128],
        f"{name}self_attn.o_proj.a": [64, f"{name}self_attn.o_proj.rank"],
        f"{name}self_attn.o_proj.b": [f"{name}self_attn.o_proj.rank", 64],
        f"{name}mlp.gate_up_proj.a": [64, f"{name}mlp.gate_up_proj.rank"],
        f"{name}mlp.gate_up_proj.b": [f"{name}mlp.gate_up_proj.rank", 256],
        f"{name}mlp.down_proj.a": [128, f"{name}mlp.down_proj.rank"],
        f"{name}mlp.down_proj.b": [f"{name}mlp.down_proj.rank", 64],
    }


def test_contexts_have_adapters_of_their_own(
    model: OnnxLanguageModel, mixes: Mapping[str, Scaled]
) -> None:
    chosen: list[Scaled] = [[], mixes["rank 8"], mixes["some modules"], mixes["rank 8"]]
    alone, together = [], [model.new_context() for _ in chosen]
    for mix in chosen:
        context = model.new_context()
        use(model, context, mix)
        alone.append([context.extend([IDS[i : i + 1]], Cancel()) for i in range(8)])
    for context, mix in zip(together, chosen, strict=True):
        use(model, context, mix)
    for i in range(8):
        for context, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(context.extend([IDS[i : i + 1]], Cancel()), expected[i])


def test_a_change_amid_a_sequence_keeps_what_was_computed(
    model: OnnxLanguageModel, mixes: Mapping[str, Scaled]
) -> None:
    context = model.new_context()
    # More than the buffers of the cache hold at first, so that they grow after the change.
    ids = np.resize(IDS, 700)
    context.extend([ids[:300]], Cancel())
    use(model, context, mixes["rank 8"])
    changed = context.extend([ids[300:]], Cancel())
    use(model, context, mixes["rank 8"])
    context.truncate(300)
    np.testing.assert_array_equal(context.extend([ids[300:]], Cancel()), changed)
    context.truncate(0)
    fresh = context.extend([ids], Cancel())
    assert np.abs(fresh - changed).max() > 1e-3
    context.use_adapters({})
    context.truncate(0)
    context.extend([ids[:300]], Cancel())
    use(model, context, mixes["rank 8"])
    np.testing.assert_array_equal(context.extend([ids[300:]], Cancel()), changed)


def test_the_order_of_adapters_moves_no_bit(
    model: OnnxLanguageModel, mixes: Mapping[str, Scaled]
) -> None:
    rows = []
    for mix in (mixes["three"], mixes["three"][::-1]):
        context = model.new_context()
        use(model, context, mix)
        rows.append(logits(context))
    np.testing.assert_array_equal(*rows)


def test_swaps_leave_nothing_behind(
    model: OnnxLanguageModel, mixes: Mapping[str, Scaled], smolvlm_source: Path
) -> None:
    ((first, _),) = mixes["rank 8"]
    second = random_lora(smolvlm_source, name="second", seed=9)
    swaps: list[Scaled] = [
        [(first, 1.0)],
        [(second, 1.0)],
        [(first, 0.5)],
        mixes["some modules"],
        [],
        [(first, 1.0), (second, 0.5)],
        mixes["some modules"],
        [(second, 1.0)],
        [(second, 0.0)],
        [(first, 1.0)],
    ]
    context = model.new_context()
    for mix in swaps:
        fresh = model.new_context()
        for each in (context, fresh):
            use(model, each, mix)
        np.testing.assert_array_equal(logits(context), logits(fresh))


def test_an_adapter_costs_no_memory_beside_its_matrices(
    model: OnnxLanguageModel, mixes: Mapping[str, Scaled]
) -> None:
    ((lora, _),) = mixes["rank 8"]
    updates = model.load_adapter(lora).updates
    assert updates is not None
    matrices = [matrix for update in updates.values() for matrix in (update.a, update.b)]
    assert sum(matrix.nbytes for matrix in matrices) == lora.n_bytes
    # Nor do they hold on to what was read from the file.
    assert all(matrix.base is None for matrix in matrices)


SMALL = LlamaShape(
    hidden_size=64,
    intermediate_size=96,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    vocab_size=320,
    max_length=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
)


def write_built_in(folder: Path, *, adapters: bool) -> Path:
    """A small model in the files of the built-in one, with an adapter among its weights."""
    ranks = {"layers.0.q": 3, "layers.1.down": 2}
    (folder / "onnx").mkdir(parents=True)
    write_skeletons(SMALL, ranks, folder / "onnx", adapters=adapters)
    random = np.random.default_rng(5)
    with (folder / "onnx" / WEIGHTS_NAME).open("wb") as file:
        for name, region in weights_layout(SMALL, ranks).items():
            file.seek(region.offset)
            if region.dtype == "uint8":
                file.write(random.integers(0, 256, region.shape, np.uint8).tobytes())
            elif "norm" in name:
                file.write(np.ones(region.shape, np.float32).tobytes())
            else:
                file.write((0.02 * random.standard_normal(region.shape, np.float32)).tobytes())
    config = {"text_config": {"max_position_embeddings": SMALL.max_length}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_built_in_model_takes_them_with_inputs_and_without(tmp_path: Path) -> None:
    text = {
        "hidden_size": SMALL.hidden_size,
        "intermediate_size": SMALL.intermediate_size,
        "num_hidden_layers": SMALL.n_layers,
        "num_attention_heads": SMALL.n_heads,
        "num_key_value_heads": SMALL.n_kv_heads,
    }
    bases, rows = [], []
    for adapters in (False, True):
        model = load(write_built_in(tmp_path / str(adapters), adapters=adapters))
        context = model.new_context()
        bases.append(logits(context))
        use(model, context, [(random_lora(text), 1.0)])
        rows.append(logits(context))
    np.testing.assert_array_equal(*bases)
    np.testing.assert_allclose(*rows, atol=1e-4)
    assert np.abs(rows[0] - bases[0]).max() > 0.1


@pytest.mark.parametrize(("module", "strange", "message"), MISFITS)
def test_refuses_adapters_of_another_base(
    model: OnnxLanguageModel,
    mixes: Mapping[str, Scaled],
    module: str,
    strange: LowRank,
    message: str,
) -> None:
    context = model.new_context()
    use(model, context, mixes["rank 8"])
    expected = logits(context)
    with pytest.raises(AdapterMismatch, match=message):
        model.load_adapter(changed(mixes["rank 8"][0][0], module, strange))
    np.testing.assert_array_equal(logits(context), expected)


def test_refuses_what_is_closed_or_of_another_model(
    model: OnnxLanguageModel, mixes: Mapping[str, Scaled], smolvlm: Path
) -> None:
    ((lora, _),) = mixes["rank 8"]
    adapter, other = model.load_adapter(lora), load(smolvlm)
    context = model.new_context()
    context.use_adapters({adapter: 1.0})
    expected = logits(context)
    with pytest.raises(AdapterMismatch, match="another model"):
        other.new_context().use_adapters({adapter: 1.0})
    adapter.close()
    assert adapter.updates is None
    np.testing.assert_array_equal(logits(context), expected)
    with pytest.raises(RuntimeFailed, match="rank-8 was closed"):
        context.use_adapters({adapter: 0.5})
    np.testing.assert_array_equal(logits(context), expected)


def test_a_closed_model_takes_none(mixes: Mapping[str, Scaled], smolvlm: Path) -> None:
    ((lora, _),) = mixes["rank 8"]
    for before in ([], [lora]):
        model = load(smolvlm)
        context = model.new_context()
        loaded = [model.load_adapter(each) for each in before]
        model.close()
        with pytest.raises(RuntimeFailed, match="The model was closed"):
            model.load_adapter(lora)
        for adapter in loaded:
            with pytest.raises(RuntimeFailed, match="The model was closed"):
                context.use_adapters({adapter: 1.0})

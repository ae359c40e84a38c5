"""Adapters on MLX: what merged weights answer, each context its own, and the base untouched."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from lora_factory import random_lora
from mlx_factory import OPTIONS, mlx_files
from mlx_foreign import make_llava, make_qwen25vl
from mlx_vlm.models import limite, phi3
from numpy.typing import NDArray

from edgevlm.engine.adapter import Adapters, Lora, LowRank
from edgevlm.engine.cancel import Cancel
from edgevlm.errors import AdapterMismatch, NotSupported, RuntimeFailed
from edgevlm.models.mlx_export import export_mlx
from edgevlm.runtimes import mlx_loading
from edgevlm.runtimes.mlx_adapter import AdaptableModules, decoder_modules
from edgevlm.runtimes.mlx_decoder import MlxContext, MlxLanguageModel
from edgevlm.runtimes.mlx_thread import on_mlx_thread

WEIGHTS = "model.safetensors"
# More than one chunk of a prefill.
IDS = np.random.default_rng(5).integers(0, 300, 50)
ONE_ID = mx.zeros((1, 1), mx.int32)
QUERY = "layers.1.self_attn.q_proj"


def load(folder: Path) -> MlxLanguageModel:
    return MlxLanguageModel(mlx_files(folder), OPTIONS)


def read_weights(folder: Path) -> dict[str, Any]:
    weights = dict(mx.load(str(folder / WEIGHTS)))
    mx.eval(weights)
    return weights


def merged(source: Path, target: Path, loras: Mapping[Lora, float]) -> MlxLanguageModel:
    """The model with the updates in its weights, which are float32."""
    shutil.copytree(source, target)
    weights = read_weights(source)
    for lora, scale in loras.items():
        for module, update in lora.decoder.items():
            [name] = [n for n in weights if n.endswith(f".{module}.weight") and "vis" not in n]
            weights[name] = weights[name] + scale * mx.array(update.b @ update.a)
    mx.save_safetensors(str(target / WEIGHTS), weights, {"format": "pt"})
    return load(target)


def dequantised(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    grid = config.pop("quantization")
    config.pop("quantization_config")
    (target / "config.json").write_text(json.dumps(config))
    weights = read_weights(source)
    for name in [n.removesuffix(".scales") for n in weights if n.endswith(".scales")]:
        own = {key: grid.get(name, grid)[key] for key in ("group_size", "bits")}
        # MLX on a CPU computes with the grid in float32.
        scales, biases = (
            weights.pop(f"{name}.{k}").astype(mx.float32) for k in ("scales", "biases")
        )
        levels = weights.pop(f"{name}.weight")
        weights[f"{name}.weight"] = mx.dequantize(levels, scales, biases, **own)
    mx.save_safetensors(str(target / WEIGHTS), weights, {"format": "mlx"})
    return target


def answer(context: MlxContext, steps: int = 8) -> NDArray[np.float32]:
    """Logits [1 + steps, n_vocab] of a prompt and the likeliest tokens behind it."""
    context.truncate(0)
    rows = [context.extend([IDS], Cancel())]
    for _ in range(steps):
        rows.append(context.extend([np.array([rows[-1].argmax()])], Cancel()))
    return np.stack(rows)


def adapted(model: MlxLanguageModel, adapters: Adapters) -> MlxContext:
    context = model.new_context()
    context.use_adapters(adapters)
    return context


def assert_near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def active_memory() -> int:
    gc.collect()
    return on_mlx_thread(mx.get_active_memory)


@pytest.fixture(scope="module")
def few_bits(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few-bits")
    export_mlx(smolvlm_source, folder, bits=4)
    return folder


@pytest.fixture(scope="module")
def model(smolvlm_source: Path) -> MlxLanguageModel:
    return load(smolvlm_source)


@pytest.fixture(scope="module")
def loras(smolvlm_source: Path) -> tuple[Lora, Lora]:
    every = random_lora(smolvlm_source, name="every")
    return every, random_lora(smolvlm_source, name="few", targets=["q_proj", "v_proj"], seed=1)


def mixture(folder: Path, name: str) -> dict[Lora, float]:
    every = random_lora(folder)
    if name == "all-linear r8":
        return {every: 1.0}
    if name == "r16 with a rank pattern":
        pattern = {QUERY: 4, "down_proj": 2, "v_proj": 1}
        return {random_lora(folder, rank=16, rank_pattern=pattern): 1.0}
    return {every: 0.8, random_lora(folder, targets=["q_proj", "v_proj"], seed=1): -0.5}


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("name", ["all-linear r8", "r16 with a rank pattern", "two with scales"])
def test_it_answers_as_merged_weights_do(
    smolvlm_source: Path, few_bits: Path, tmp_path: Path, bits: int, name: str
) -> None:
    folder, plain = smolvlm_source, smolvlm_source
    if bits == 4:
        folder, plain = few_bits, dequantised(few_bits, tmp_path / "plain")
    mixed = mixture(smolvlm_source, name)
    expected = answer(merged(plain, tmp_path / "merged", mixed).new_context())
    model = load(folder)
    base = answer(model.new_context())
    context = adapted(model, {model.load_adapter(lora): mixed[lora] for lora in mixed})
    assert_near(answer(context), expected)
    assert np.abs(expected[0] - base[0]).max() > 0.5
    context.use_adapters({})
    np.testing.assert_array_equal(answer(context), base)


@pytest.mark.parametrize("make", [make_qwen25vl, make_llava])
def test_decoders_of_other_families(tmp_path: Path, make: Callable[..., Any]) -> None:
    folder = make(tmp_path / "source").folder
    lora = random_lora(folder)
    model = load(folder)
    base = answer(model.new_context())
    context = adapted(model, {model.load_adapter(lora): 1.0})
    assert_near(answer(context), answer(merged(folder, tmp_path / "m", {lora: 1.0}).new_context()))
    assert np.abs(answer(context) - base).max() > 0.1


def test_the_built_in_model_keeps_its_own_beneath(smolvlm_source: Path, tmp_path: Path) -> None:
    own, other = (random_lora(smolvlm_source, seed=seed) for seed in (1, 2))
    expected = merged(smolvlm_source, tmp_path / "merged", {own: 1.0, other: 0.5})
    model = load(as_tiny(smolvlm_source, tmp_path / "tiny", own))
    context = adapted(model, {model.load_adapter(other): 0.5})
    assert_near(answer(context), answer(expected.new_context()))


def as_tiny(source: Path, folder: Path, lora: Lora) -> Path:
    """Its decoder in the form of edgevlm-tiny, with an adapter of its own."""
    weights = {}
    for name, array in read_weights(source).items():
        if not name.startswith(("lm_head.", "model.text_model.")):
            continue
        name = "language_model." + name.removeprefix("model.text_model.")
        module = name.removeprefix("language_model.").removesuffix(".weight")
        if update := lora.decoder.get(module):
            weights[f"language_model.{module}.linear.weight"] = array
            weights[f"language_model.{module}.lora_a"] = mx.array(update.a.T)
            weights[f"language_model.{module}.lora_b"] = mx.array(update.b.T)
        else:
            weights[name] = array
    config = {
        "model_type": "edgevlm_tiny",
        "text_config": json.loads((source / "config.json").read_text())["text_config"],
        "lora_ranks": {f"language_model.{name}": own.rank for name, own in lora.decoder.items()},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / WEIGHTS), weights)
    return folder


def test_contexts_with_different_adapters_side_by_side(
    model: MlxLanguageModel, loras: tuple[Lora, Lora]
) -> None:
    """Token by token, each with a step begun ahead while the other one runs."""
    every, few = (model.load_adapter(lora) for lora in loras)
    sets: list[Adapters] = [{}, {every: 1.0}, {few: 0.5}, {few: 0.5, every: -1.0}]
    expected = [answer(adapted(model, adapters)) for adapters in sets]
    contexts = [adapted(model, adapters) for adapters in sets]
    rows = [[context.extend([IDS], Cancel())] for context in contexts]
    for _ in range(8):
        for context, found in zip(contexts, rows, strict=True):
            found.append(context.extend([np.array([found[-1].argmax()])], Cancel()))
    np.testing.assert_array_equal(np.array(rows), expected)
    assert len({row.tobytes() for found in expected for row in found[:1]}) == len(sets)


def test_a_step_begun_ahead_does_not_outlive_a_change(
    model: MlxLanguageModel, loras: tuple[Lora, Lora]
) -> None:
    every, few = (model.load_adapter(lora) for lora in loras)
    context, ids = model.new_context(), list(IDS)
    logits = context.extend([IDS], Cancel())
    adapters: Adapters
    for adapters in ({every: 1.0}, {every: 0.9}, {few: 0.9}, {}):
        for _ in range(3):
            ids.append(int(logits.argmax()))
            logits = context.extend([np.array(ids[-1:])], Cancel())
        likely = np.array([logits.argmax()])
        assert context._guess is not None
        context.use_adapters(adapters)
        changed = context.extend([likely], Cancel())
        context.truncate(len(ids))
        # An unlikely token has nothing begun ahead for it.
        context.extend([np.array([logits.argmin()])], Cancel())
        context.truncate(len(ids))
        np.testing.assert_array_equal(context.extend([likely], Cancel()), changed)
        ids.append(int(likely[0]))
        logits = changed


def test_what_a_context_holds_stays_as_it_was_computed(
    model: MlxLanguageModel, loras: tuple[Lora, Lora], smolvlm_source: Path, tmp_path: Path
) -> None:
    every = model.load_adapter(loras[0])
    context = model.new_context()
    context.extend([IDS[:40]], Cancel())
    context.use_adapters({every: 1.0})
    assert context.length == 40
    found = context.extend([IDS[40:]], Cancel())
    whole = adapted(model, {every: 1.0}).extend([IDS], Cancel())
    assert np.abs(found - whole).max() > 0.01


def test_they_are_closed_in_any_order(model: MlxLanguageModel, loras: tuple[Lora, Lora]) -> None:
    before = active_memory()
    for order in ([0, 1], [1, 0]):
        adapters = [model.load_adapter(lora) for lora in loras]
        first, second = (adapters[index] for index in order)
        context = adapted(model, {first: 1.0, second: 0.5})
        both, alone = answer(context), answer(adapted(model, {second: 0.5}))
        first.close()
        np.testing.assert_array_equal(answer(context), both)
        with pytest.raises(RuntimeFailed, match=f"{first.name} was closed"):
            context.use_adapters({first: 1.0})
        np.testing.assert_array_equal(answer(context), both)
        context.use_adapters({second: 0.5})
        np.testing.assert_array_equal(answer(context), alone)
        second.close()
        second.close()
        context.close()
        del context, adapters, first, second
    assert active_memory() <= before


def test_what_it_costs(model: MlxLanguageModel, loras: tuple[Lora, Lora]) -> None:
    lora = loras[0]
    model.load_adapter(lora)
    before = active_memory()
    adapters = [model.load_adapter(lora) for _ in range(10)]
    assert active_memory() - before < 1.3 * 10 * lora.n_bytes
    assert (adapters[0].name, adapters[0].digest) == (lora.name, lora.digest)


def test_a_closed_model_lets_its_weights_go(smolvlm_source: Path, loras: tuple[Lora, Lora]) -> None:
    load(smolvlm_source).close()
    before = active_memory()
    model = load(smolvlm_source)
    adapter, context = model.load_adapter(loras[0]), model.new_context()
    context.use_adapters({adapter: 1.0})
    context.extend([IDS], Cancel())
    for part in (adapter, context, model):
        part.close()
    assert active_memory() <= before
    with pytest.raises(RuntimeFailed, match="The model was closed"):
        model.new_context()


def test_memory_is_flat_over_1000_swaps(model: MlxLanguageModel, loras: tuple[Lora, Lora]) -> None:
    every, few = (model.load_adapter(lora) for lora in loras)
    context = model.new_context()
    context.extend([IDS], Cancel())
    before = active_memory()
    for index in range(1000):
        context.use_adapters({every: index / 1000, few: 1.0} if index % 2 else {few: 0.5})
        if index % 100 == 0:
            context.extend([IDS[:1]], Cancel())
            context.truncate(len(IDS))
    assert active_memory() <= 1.02 * before


def changed(lora: Lora, module: str, update: LowRank) -> Lora:
    return replace(lora, name="odd", decoder={**lora.decoder, module: update})


def zeros(a: tuple[int, ...], b: tuple[int, ...]) -> LowRank:
    return LowRank(np.zeros(a, np.float32), np.zeros(b, np.float32))


@pytest.mark.parametrize(
    ("module", "update", "says"),
    [
        (QUERY, zeros((8, 65), (64, 8)), r"q_proj.* odd .*\(8, 65\).*random takes \(8, 64\)"),
        (QUERY, zeros((8, 64), (63, 8)), r"\(63, 8\).* and \(64, 8\)"),
        (QUERY, zeros((8, 64), (64, 9)), r"\(64, 9\)"),
        (QUERY, zeros((64, 8), (8, 64)), "q_proj"),
        (QUERY, zeros((8,), (8,)), "q_proj"),
        ("layers.2.mlp.up_proj", zeros((8, 64), (128, 8)), r"layers\.2\.mlp.* random doesn't have"),
        ("norm", zeros((8, 64), (64, 8)), "norm"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    model: MlxLanguageModel, loras: tuple[Lora, Lora], module: str, update: LowRank, says: str
) -> None:
    context = adapted(model, {model.load_adapter(loras[0]): 1.0})
    expected, before = answer(context, 1), active_memory()
    with pytest.raises(AdapterMismatch, match=says):
        model.load_adapter(changed(loras[0], module, update))
    assert active_memory() == before
    np.testing.assert_array_equal(answer(context, 1), expected)


def test_modules_that_can_not_be_changed_are_named(
    model: MlxLanguageModel, loras: tuple[Lora, Lora]
) -> None:
    norm = zeros((8, 64), (64, 8))
    with pytest.raises(NotSupported, match=r"odd changes layers\.0\.input_layernorm"):
        model.load_adapter(changed(loras[0], "layers.0.input_layernorm", norm))


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}


def test_a_decoder_with_packed_projections() -> None:
    """Phi-3 has queries, keys and values in one module, and up and gate in another."""
    config = phi3.ModelConfig(model_type="phi3", rms_norm_eps=1e-6, **SMALL)

    def find() -> AdaptableModules:
        language = phi3.Model(config).language_model
        return decoder_modules("phi", language.layers, lambda: language(ONE_ID))

    decoder = on_mlx_thread(find)
    output = random_lora({"text_config": SMALL}, targets=["o_proj", "down_proj"])
    on_mlx_thread(decoder.load, output, output.decoder)
    every = random_lora({"text_config": SMALL})
    with pytest.raises(NotSupported, match=r"random changes layers\.0\.self_attn\.q_proj"):
        on_mlx_thread(decoder.load, every, every.decoder)


def test_a_decoder_that_reads_weights_past_its_modules() -> None:
    """An update beside such a module would be ignored."""
    config = limite.ModelConfig(head_dim=32, rope_n_pairs=8, ve_dim=32, mudd=False, **SMALL)

    def find() -> AdaptableModules:
        language = limite.LanguageModel(config)
        return decoder_modules("limite", language.layers, lambda: language(ONE_ID))

    with pytest.raises(NotSupported, match="can't add adapters to limite"):
        on_mlx_thread(find)


def test_an_adapter_in_the_memory_of_another_model(
    model: MlxLanguageModel, loras: tuple[Lora, Lora], smolvlm_source: Path
) -> None:
    context = model.new_context()
    other = load(smolvlm_source)
    stranger = other.load_adapter(loras[0])
    with pytest.raises(AdapterMismatch, match="every was loaded for another model than random"):
        context.use_adapters({stranger: 1.0})
    other.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        other.load_adapter(loras[0])
    context.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        context.use_adapters({})


def test_a_model_of_16_bits_stays_at_16_bits(
    smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(smolvlm_source, tmp_path / "model"))
    weights = {name: array.astype(mx.bfloat16) for name, array in read_weights(folder).items()}
    mx.save_safetensors(str(folder / WEIGHTS), weights, {"format": "mlx"})
    lora = random_lora(folder)
    expected = answer(merged(smolvlm_source, tmp_path / "merged", {lora: 1.0}).new_context(), 0)
    monkeypatch.setattr(mlx_loading, "on_metal", lambda: True)
    model = load(folder)
    base = answer(model.new_context(), 0)
    before = active_memory()
    adapter = model.load_adapter(lora)
    assert active_memory() - before < 0.7 * lora.n_bytes
    context = adapted(model, {adapter: 1.0})
    # As near as its 16 bits are to the model of 32.
    found = answer(context, 0)
    assert np.corrcoef(found, expected)[0, 1] > 0.99 > np.corrcoef(base, expected)[0, 1]
    assert context._cache is not None
    assert {layer.keys.dtype for layer in context._cache.layers} == {mx.bfloat16}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_numbers_beyond_float16_are_refused(
    smolvlm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: mx.Dtype
) -> None:
    folder = Path(shutil.copytree(smolvlm_source, tmp_path / "model"))
    weights = {name: array.astype(dtype) for name, array in read_weights(folder).items()}
    mx.save_safetensors(str(folder / WEIGHTS), weights, {"format": "mlx"})
    monkeypatch.setattr(mlx_loading, "on_metal", lambda: True)
    model, lora = load(folder), random_lora(folder)
    update = lora.decoder[QUERY]
    large = LowRank(update.a * np.float32(1e-5), update.b * np.float32(1e7))
    if dtype == mx.float16:
        with pytest.raises(NotSupported, match=r"q_proj .* odd has numbers .* beyond the float16"):
            model.load_adapter(changed(lora, QUERY, large))
    else:
        context = adapted(model, {model.load_adapter(changed(lora, QUERY, large)): 1.0})
        assert np.isfinite(context.extend([IDS], Cancel())).all()

"""Adapters on llama.cpp: what they compute, what is refused, and what their memory outlives."""

from __future__ import annotations

import errno
import gc
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gguf_foreign
import numpy as np
import pytest
import torch
from gguf_foreign import Foreign
from llamacpp_parts import OPTIONS, llamacpp_files
from lora_factory import random_lora
from numpy.typing import NDArray
from smolvlm_factory import load_reference

from edgevlm.engine.adapter import Adapters, Lora, LowRank
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import AdapterMismatch, ModelCorrupt, NoSpace, NotSupported, RuntimeFailed
from edgevlm.runtimes.llamacpp_adapter import AdaptableDecoder
from edgevlm.runtimes.llamacpp_decoder import LlamaCppLanguageModel
from edgevlm.runtimes.llamacpp_lora import LoraGguf

IDS = np.random.default_rng(4).integers(100, 250, 600)
PARITY = 1e-3  # of logits with a deviation of 3
CASES = {
    "all-linear": ({"seed": 1}, 1.0),
    "r16 with a rank pattern": ({"seed": 2, "rank": 16, "rank_pattern": {"q_proj": 4}}, 1.0),
    "scaled up": ({"seed": 1}, 1.5),
    "turned round": ({"seed": 1}, -1.0),
}


@pytest.fixture(scope="module")
def model(smolvlm_gguf: Path) -> Iterator[LlamaCppLanguageModel]:
    model = LlamaCppLanguageModel(llamacpp_files(smolvlm_gguf), OPTIONS)
    yield model
    model.close()


@pytest.fixture
def lora(smolvlm_source: Path) -> Lora:
    return random_lora(smolvlm_source, name="medical")


def merged(source: Path, updates: Mapping[Lora, float]) -> NDArray[np.float32]:
    """The last logits of IDS[:40] with the updates in the weights, by transformers."""
    reference = load_reference(source)
    weights = dict(reference.model.text_model.named_parameters())
    ids = torch.from_numpy(IDS[None, :40])
    with torch.no_grad():
        for lora, scale in updates.items():
            for module, update in lora.decoder.items():
                weights[f"{module}.weight"] += scale * torch.from_numpy(update.b @ update.a)
        logits: NDArray[np.float32] = reference(input_ids=ids).logits[0, -1].numpy()
    return logits


def afresh(
    model: LlamaCppLanguageModel, adapters: Adapters, n_ids: int = 40
) -> NDArray[np.float32]:
    context = model.new_context()
    try:
        context.use_adapters(adapters)
        return context.extend([IDS[:n_ids]], Cancel())
    finally:
        context.close()


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_merged_weights(
    model: LlamaCppLanguageModel, smolvlm_source: Path, case: str
) -> None:
    options, scale = CASES[case]
    lora = random_lora(smolvlm_source, **options)  # type: ignore[arg-type]
    found = afresh(model, {model.load_adapter(lora): scale})
    np.testing.assert_allclose(found, merged(smolvlm_source, {lora: scale}), rtol=0, atol=PARITY)
    assert np.abs(found - afresh(model, {})).max() > 0.5


def test_two_at_once_with_scales(model: LlamaCppLanguageModel, smolvlm_source: Path) -> None:
    one = random_lora(smolvlm_source, seed=1)
    other = random_lora(smolvlm_source, seed=2, rank=4, targets=["q_proj", "down_proj"])
    found = afresh(model, {model.load_adapter(one): 0.8, model.load_adapter(other): -0.5})
    expected = merged(smolvlm_source, {one: 0.8, other: -0.5})
    np.testing.assert_allclose(found, expected, rtol=0, atol=PARITY)


def test_the_base_comes_back_bit_for_bit(model: LlamaCppLanguageModel, lora: Lora) -> None:
    loaded = model.load_adapter(lora)
    base = afresh(model, {})
    context = model.new_context()
    for adapters in ({loaded: 1.0}, {}, {loaded: 0.5}, {loaded: 2.0}, {}):
        context.use_adapters(adapters)
        context.truncate(0)
        found = context.extend([IDS[:40]], Cancel())
        assert np.array_equal(found, afresh(model, adapters))
        assert np.array_equal(found, base) is (not adapters)


def test_swaps_with_no_step_between_leave_the_last(
    model: LlamaCppLanguageModel, smolvlm_source: Path
) -> None:
    one, other = (model.load_adapter(random_lora(smolvlm_source, seed=s)) for s in (1, 2))
    context = model.new_context()
    context.use_adapters({one: 1.0})
    context.extend([IDS[:40]], Cancel())
    for adapters in ({other: 1.0}, {one: 0.5}, {other: -1.0}):
        context.use_adapters(adapters)
    context.truncate(0)
    assert np.array_equal(context.extend([IDS[:40]], Cancel()), afresh(model, {other: -1.0}))


def test_what_a_context_holds_stays_as_it_was_computed(
    model: LlamaCppLanguageModel, lora: Lora
) -> None:
    loaded = model.load_adapter(lora)
    context = model.new_context()
    context.extend([IDS[:20]], Cancel())
    context.use_adapters({loaded: 1.0})
    mixed = context.extend([IDS[20:40]], Cancel())
    for adapters in ({}, {loaded: 1.0}):
        assert np.abs(mixed - afresh(model, adapters)).max() > 0.1


def test_a_context_keeps_its_adapters_as_it_grows(model: LlamaCppLanguageModel, lora: Lora) -> None:
    loaded = model.load_adapter(lora)
    context = model.new_context()
    context.use_adapters({loaded: 1.0})
    context.extend([IDS[:40]], Cancel())
    small = context._sequence
    found = context.extend([IDS[40:600]], Cancel())
    assert context._sequence is not small
    np.testing.assert_allclose(found, afresh(model, {loaded: 1.0}, 600), rtol=0, atol=PARITY)


def test_two_contexts_with_different_adapters_at_once(
    model: LlamaCppLanguageModel, smolvlm_source: Path
) -> None:
    loaded = [model.load_adapter(random_lora(smolvlm_source, seed=seed)) for seed in (1, 2)]
    expected = [afresh(model, {each: 1.0}) for each in loaded]
    contexts = [model.new_context() for _ in loaded]
    for context, each in zip(contexts, loaded, strict=True):
        context.use_adapters({each: 1.0})
    found: list[list[NDArray[np.float32]]] = [[], []]

    def answer(which: int) -> None:
        for _ in range(5):
            contexts[which].truncate(0)
            found[which].append(contexts[which].extend([IDS[:40]], Cancel()))

    threads = [threading.Thread(target=answer, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows, row in zip(found, expected, strict=True):
        assert len(rows) == 5
        assert all(np.array_equal(each, row) for each in rows)


def test_loading_and_closing_while_another_thread_swaps(
    model: LlamaCppLanguageModel, lora: Lora
) -> None:
    loaded, failed = model.load_adapter(lora), []
    expected = {scale: afresh(model, {loaded: scale}, 3) for scale in (0.5, 1.0)}

    def swap() -> None:
        context = model.new_context()
        for scale in [0.5, 1.0] * 20:
            context.use_adapters({loaded: scale})
            context.truncate(0)
            if not np.array_equal(context.extend([IDS[:3]], Cancel()), expected[scale]):
                failed.append(scale)

    thread = threading.Thread(target=swap)
    thread.start()
    while thread.is_alive():
        model.load_adapter(lora).close()
    thread.join()
    assert not failed


def test_the_models_own_adapter_stays_under_others(
    smolvlm_gguf: Path, smolvlm_source: Path, tmp_path: Path
) -> None:
    own, other = (random_lora(smolvlm_source, seed=seed) for seed in (5, 6))
    roles = dict(llamacpp_files(smolvlm_gguf).roles)
    weights = LlamaCppLanguageModel(ModelFiles("x", tmp_path, roles), OPTIONS).opened()
    tensors = AdaptableDecoder(weights)._tensors(own)
    LoraGguf("llama", tensors).write(tmp_path / "lora.gguf")
    model = LlamaCppLanguageModel(
        ModelFiles("x", tmp_path, {**roles, "lora": tmp_path / "lora.gguf"}), OPTIONS
    )
    loaded = model.load_adapter(other)
    with_own = afresh(model, {})
    np.testing.assert_allclose(with_own, merged(smolvlm_source, {own: 1.0}), rtol=0, atol=PARITY)
    found = afresh(model, {loaded: 0.7})
    expected = merged(smolvlm_source, {own: 1.0, other: 0.7})
    np.testing.assert_allclose(found, expected, rtol=0, atol=PARITY)
    assert np.array_equal(afresh(model, {}), with_own)
    model.close()


def test_nothing_stays_on_the_disk(
    model: LlamaCppLanguageModel, tmp_path: Path, lora: Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    loaded = model.load_adapter(lora)
    assert not list(tmp_path.iterdir())
    assert not np.array_equal(afresh(model, {loaded: 1.0}), afresh(model, {}))


def test_a_full_disk_is_said(
    model: LlamaCppLanguageModel, tmp_path: Path, lora: Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LoraGguf, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(LoraGguf, "write", full)
    with pytest.raises(NoSpace, match="No space left on device"):
        model.load_adapter(lora)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(NoSpace, match="No such file"):
        model.load_adapter(lora)


@pytest.mark.parametrize("make", [gguf_foreign.make_qwen25vl, gguf_foreign.make_gemma3])
def test_other_kinds_have_queries_and_keys_in_the_order_of_the_checkpoint(
    make: Callable[[Path], Foreign], tmp_path: Path
) -> None:
    foreign = make(tmp_path)
    lora = random_lora(foreign.reference.config.get_text_config().to_dict())
    model = LlamaCppLanguageModel(llamacpp_files(tmp_path), OPTIONS)
    found = afresh(model, {model.load_adapter(lora): 1.0})
    base = afresh(model, {})
    model.close()
    weights = dict(foreign.reference.model.language_model.named_parameters())
    ids = torch.from_numpy(IDS[None, :40])
    with torch.no_grad():
        np.testing.assert_allclose(foreign.reference(ids).logits[0, -1], base, atol=1e-2)
        for module, update in lora.decoder.items():
            weights[f"{module}.weight"] += torch.from_numpy(update.b @ update.a)
        expected = foreign.reference(ids).logits[0, -1]
    # ggml looks GELU up in a table of 16-bit numbers.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2)
    assert np.abs(found - base).max() > 0.3


MATRIX = np.ones((4, 64), np.float32)


def own_adapter(
    path: Path,
    kind: object = "adapter",
    alpha: object = 0.0,
    tensor: str = "blk.0.attn_q.weight",
    a: NDArray[Any] = MATRIX,
    b: NDArray[Any] = MATRIX.T,
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    setters = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    pairs = {"general.type": kind, "adapter.type": "lora", "adapter.lora.alpha": alpha}
    for key, value in pairs.items():
        setters[type(value)](key, value)
    writer.add_tensor(f"{tensor}.lora_a", a)
    writer.add_tensor(f"{tensor}.lora_b", np.ascontiguousarray(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Each of the first three ends the process where llama.cpp gets the file.
BROKEN: dict[str, dict[str, Any]] = {
    "a type that is a number": {"kind": 1},
    "an alpha that is a word": {"alpha": "8"},
    "integers": {"a": MATRIX.astype(np.int32)},
    "embeddings of two ranks": {
        "tensor": "token_embd.weight",
        "a": np.ones((1, 4), np.float32),
        "b": np.ones((64, 8), np.float32),
    },
    "a cube": {"a": np.ones((2, 4, 64), np.float32)},
    "an alpha that is no number": {"alpha": float("nan")},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_models_own_adapter_is_looked_at_before(
    smolvlm_gguf: Path, tmp_path: Path, case: str
) -> None:
    roles = dict(llamacpp_files(smolvlm_gguf).roles)
    roles["lora"] = own_adapter(tmp_path / "lora.gguf", **BROKEN[case])
    with pytest.raises(ModelCorrupt, match=r"lora\.gguf is broken or incomplete"):
        LlamaCppLanguageModel(ModelFiles("x", tmp_path, roles), OPTIONS)
    roles["lora"] = own_adapter(tmp_path / "lora.gguf")
    LlamaCppLanguageModel(ModelFiles("x", tmp_path, roles), OPTIONS).close()


def with_module(lora: Lora, module: str, a: tuple[int, int], b: tuple[int, int]) -> Lora:
    update = LowRank(np.ones(a, np.float32), np.ones(b, np.float32))
    return replace(lora, decoder={**lora.decoder, module: update})


MISMATCHES = {
    "another width": ("layers.0.self_attn.q_proj", (8, 65), (64, 8)),
    "another height": ("layers.1.self_attn.k_proj", (8, 64), (64, 8)),
    "ranks that differ": ("layers.1.mlp.up_proj", (8, 64), (128, 4)),
    "no rank": ("layers.1.mlp.up_proj", (0, 64), (128, 0)),
    "turned round": ("layers.0.mlp.down_proj", (64, 8), (8, 128)),
    "too many layers": ("layers.2.mlp.up_proj", (8, 64), (128, 8)),
    "no layer": ("layers.x.mlp.up_proj", (8, 64), (128, 8)),
    "a head": ("lm_head", (8, 64), (500, 8)),
    "embeddings": ("embed_tokens", (8, 500), (64, 8)),
    "a norm": ("layers.0.input_layernorm", (8, 64), (64, 8)),
    "no name": ("", (8, 64), (64, 8)),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_what_does_not_fit_is_refused(model: LlamaCppLanguageModel, lora: Lora, case: str) -> None:
    module, a, b = MISMATCHES[case]
    base = afresh(model, {})
    context = model.new_context()
    context.extend([IDS[:20]], Cancel())
    with pytest.raises(AdapterMismatch) as raised:
        model.load_adapter(with_module(lora, module, a, b))
    for name in ("medical", module, "smolvlm-F32.gguf"):
        assert name in raised.value.message
    np.testing.assert_allclose(context.extend([IDS[20:40]], Cancel()), base, rtol=0, atol=PARITY)


def test_an_order_of_rows_that_is_not_known_is_refused(
    model: LlamaCppLanguageModel, smolvlm_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = AdaptableDecoder(model.opened())
    monkeypatch.setattr(decoder, "_architecture", "command-r")
    with pytest.raises(NotSupported, match=r"queries or keys.*of the kind command-r"):
        decoder.load(random_lora(smolvlm_source, targets=["k_proj"]))


def test_adapters_stay_with_their_model(
    model: LlamaCppLanguageModel, smolvlm_gguf: Path, tmp_path: Path, lora: Lora
) -> None:
    copied = tmp_path / "copy.gguf"
    shutil.copyfile(llamacpp_files(smolvlm_gguf).roles["decoder"], copied)
    other = LlamaCppLanguageModel(ModelFiles("copy", tmp_path, {"decoder": copied}), OPTIONS)
    loaded = model.load_adapter(lora)
    context = other.new_context()
    with pytest.raises(AdapterMismatch, match="medical was loaded for another model"):
        context.use_adapters({loaded: 1.0})
    assert np.array_equal(context.extend([IDS[:40]], Cancel()), afresh(other, {}))
    other.close()


def test_a_closed_adapter_stays_where_it_is_used_and_goes_nowhere_else(
    model: LlamaCppLanguageModel, lora: Lora
) -> None:
    loaded = model.load_adapter(lora)
    expected = afresh(model, {loaded: 1.0})
    context = model.new_context()
    context.use_adapters({loaded: 1.0})
    context.extend([IDS[:20]], Cancel())
    loaded.close()
    loaded.close()
    gc.collect()
    found = context.extend([IDS[20:40]], Cancel())
    np.testing.assert_allclose(found, expected, rtol=0, atol=PARITY)
    with pytest.raises(RuntimeFailed, match="The adapter medical was closed"):
        context.use_adapters({loaded: 1.0})
    context.use_adapters({})
    context.truncate(0)
    assert np.array_equal(context.extend([IDS[:40]], Cancel()), afresh(model, {}))


def test_a_closed_context_takes_none(model: LlamaCppLanguageModel, lora: Lora) -> None:
    loaded, context = model.load_adapter(lora), model.new_context()
    context.close()
    with pytest.raises(RuntimeFailed, match="The context was closed"):
        context.use_adapters({loaded: 1.0})


# What both programs begin with.
PARTS = """
import gc, itertools, sys
from pathlib import Path
source, gguf, *folders = sys.argv[1:]
sys.path[:0] = folders
import numpy as np
from llamacpp_parts import OPTIONS, llamacpp_files
from lora_factory import random_lora
from edgevlm.devices.memory import peak_rss_bytes
from edgevlm.engine.cancel import Cancel
from edgevlm.runtimes.llamacpp_decoder import LlamaCppLanguageModel

def load():
    return LlamaCppLanguageModel(llamacpp_files(Path(gguf)), OPTIONS)
"""
# Freeing an adapter after its model, or while a context computes with it, ends the process.
ENDINGS = """
lora = random_lora(Path(source))
for order in itertools.permutations(range(3)):
    model = load()
    parts = [model, model.load_adapter(lora), model.new_context()]
    parts[2].use_adapters({parts[1]: 1.0})
    parts[2].extend([np.arange(5)], Cancel())
    del model
    for index in order:
        parts[index].close()
        parts[index] = None
        gc.collect()
model = load()
context, loaded = model.new_context(), model.load_adapter(lora)
context.use_adapters({loaded: 1.0})
context.extend([np.arange(5)], Cancel())
print("alive")
"""
# Linux gives a process the peak of the one that started it.
MEMORY = """
import mmap

def held():
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE if statm.exists() else peak_rss_bytes()

model, lora = load(), random_lora(Path(source), rank=512)
context = model.new_context()

def rounds(count):
    for _ in range(count):
        loaded = model.load_adapter(lora)
        for adapters in ({loaded: 1.0}, {}):
            context.use_adapters(adapters)
            context.truncate(0)
            context.extend([np.arange(3)], Cancel())
        loaded.close()
    return held()

first = rounds(10)
later = rounds(30)
several = [model.load_adapter(lora) for _ in range(10)]
print(lora.n_bytes, later - first, held() - later)
"""


def run_apart(code: str, *folders: Path) -> list[str]:
    tests = Path(__file__).parents[1]
    arguments = [str(path) for path in (*folders, tests, tests / "runtimes")]
    command = [sys.executable, "-c", PARTS + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_ends_in_any_order(smolvlm_gguf: Path, smolvlm_source: Path) -> None:
    assert run_apart(ENDINGS, smolvlm_source, smolvlm_gguf) == ["alive"]


def test_an_adapter_costs_its_bytes_and_leaves_none_behind(
    smolvlm_gguf: Path, smolvlm_source: Path
) -> None:
    n_bytes, left, ten = map(int, run_apart(MEMORY, smolvlm_source, smolvlm_gguf))
    assert n_bytes > 4e6
    # What the heap keeps for the next goes up and down by a few; a leak would be 30 of them.
    assert left < 5 * n_bytes
    assert 5 * n_bytes < ten < 10 * 1.3 * n_bytes

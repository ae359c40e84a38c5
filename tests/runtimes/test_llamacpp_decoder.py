"""Contexts on llama.cpp: exact reuse, growth, blocks, cancel, threads and the end of things."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from llamacpp_parts import OPTIONS, llamacpp_files
from numpy.typing import NDArray
from smolvlm_factory import load_reference

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.prompt import Block, BlockEmbeddings
from edgevlm.errors import (
    Interrupted,
    ModelCorrupt,
    NotSupported,
    PromptTooLong,
    RuntimeFailed,
)
from edgevlm.runtimes.llamacpp_decoder import LlamaCppContext, LlamaCppLanguageModel
from edgevlm.runtimes.llamacpp_layout import PositionMap, lay_out

IDS = np.random.default_rng(1).integers(0, 400, 2000)
# Of float32 sums in another order; the logits have a deviation of 3.
CHUNKING = 1e-4


class WhileItRuns(Cancel):
    """Set by another's hand once the call has looked at it for the last time before it runs."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def check(self) -> None:
        if self.looks == 0:
            self.set()
            self.looks -= 1
            return
        self.looks -= 1
        super().check()


@pytest.fixture(scope="module")
def model(smolvlm_gguf: Path) -> Iterator[LlamaCppLanguageModel]:
    model = LlamaCppLanguageModel(llamacpp_files(smolvlm_gguf), OPTIONS)
    yield model
    model.close()


@pytest.fixture
def context(model: LlamaCppLanguageModel) -> Iterator[LlamaCppContext]:
    context = model.new_context()
    yield context
    context.close()


def afresh(model: LlamaCppLanguageModel, *parts: Any) -> NDArray[np.float32]:
    context = model.new_context()
    try:
        return context.extend(parts, Cancel())
    finally:
        context.close()


def rows(n: int, d_model: int = 64, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, d_model), np.float32)


def test_what_is_truncated_leaves_no_trace(
    model: LlamaCppLanguageModel, context: LlamaCppContext
) -> None:
    context.extend([IDS[:40]], Cancel())
    context.extend([rows(30), IDS[300:310]], Cancel())
    context.truncate(25)
    assert context.length == 25
    found = context.extend([IDS[25:60]], Cancel())
    np.testing.assert_allclose(found, afresh(model, IDS[:60]), rtol=0, atol=CHUNKING)
    context.truncate(0)
    np.testing.assert_array_equal(context.extend([IDS[:60]], Cancel()), afresh(model, IDS[:60]))


def test_embeddings_are_taken_as_they_are(
    model: LlamaCppLanguageModel, context: LlamaCppContext, smolvlm_gguf: Path
) -> None:
    decoder = llamacpp_files(smolvlm_gguf).roles["decoder"]
    (table,) = (t.data for t in GGUFReader(decoder).tensors if t.name == "token_embd.weight")
    parts = [IDS[:5], table[IDS[5:70]], IDS[70:75]]
    found = context.extend(parts, Cancel())
    np.testing.assert_allclose(found, afresh(model, IDS[:75]), rtol=0, atol=CHUNKING)
    np.testing.assert_array_equal(afresh(model, *parts), found)
    # Whatever lies between its rows in memory.
    strided = np.repeat(table[IDS[5:70]], 2, axis=0)[::2]
    np.testing.assert_array_equal(afresh(model, IDS[:5], strided, IDS[70:75]), found)


def test_a_context_grows_and_keeps_what_it_holds(
    model: LlamaCppLanguageModel, context: LlamaCppContext
) -> None:
    capacities = []
    for start in range(0, 1500, 300):
        found = context.extend([IDS[start : start + 300]], Cancel())
        assert context._sequence is not None
        capacities.append(context._sequence.capacity)
    assert capacities == sorted(capacities)
    assert 300 < capacities[0] < 1500 <= capacities[-1] < 1.25 * 1500 + 256
    np.testing.assert_allclose(found, afresh(model, IDS[:1500]), rtol=0, atol=CHUNKING)


def test_a_growth_that_fails_loses_nothing(
    model: LlamaCppLanguageModel, context: LlamaCppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.extend([IDS[:50]], Cancel())
    make = model.open_sequence

    def scarce(capacity: int, batch: int) -> Any:
        if capacity > 500:
            raise RuntimeFailed("no memory")
        return make(capacity, batch)

    monkeypatch.setattr(model, "open_sequence", scarce)
    with pytest.raises(RuntimeFailed, match="no memory"):
        context.extend([IDS[50:900]], Cancel())
    assert context.length == 50
    found = context.extend([IDS[50:60]], Cancel())
    np.testing.assert_allclose(found, afresh(model, IDS[:60]), rtol=0, atol=CHUNKING)


def test_a_context_that_can_not_be_put_back_is_closed(
    model: LlamaCppLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = model.new_context()
    context.extend([IDS[:50]], Cancel())

    def nothing_left(capacity: int, batch: int) -> Any:
        raise RuntimeFailed("no memory")

    monkeypatch.setattr(model, "open_sequence", nothing_left)
    with pytest.raises(RuntimeFailed, match="no memory"):
        context.extend([IDS[50:900]], Cancel())
    monkeypatch.undo()
    for call in (lambda: context.extend([IDS[50:60]], Cancel()), lambda: context.truncate(10)):
        with pytest.raises(RuntimeFailed, match="The context was closed"):
            call()
    context.close()


def test_contexts_know_nothing_of_each_other(model: LlamaCppLanguageModel) -> None:
    one, other = model.new_context(), model.new_context()
    one.extend([IDS[:20]], Cancel())
    other.extend([IDS[100:150]], Cancel())
    found = one.extend([IDS[20:30]], Cancel())
    other.close()
    np.testing.assert_allclose(found, afresh(model, IDS[:30]), rtol=0, atol=CHUNKING)
    one.close()


@pytest.mark.parametrize("looks", [1, 3])
def test_a_cancel_while_it_computes_leaves_the_context_as_it_was(
    model: LlamaCppLanguageModel, context: LlamaCppContext, looks: int
) -> None:
    context.extend([IDS[:40]], Cancel())
    # Prefill: in the first batch, and in the third. Then a step of decoding.
    for part in (IDS[40:700], IDS[40:41]):
        with pytest.raises(Interrupted):
            context.extend([part], WhileItRuns(min(looks, 1 + (len(part) > 1) * looks) - 1))
        assert context.length == 40
    found = context.extend([IDS[40:60]], Cancel())
    np.testing.assert_allclose(found, afresh(model, IDS[:60]), rtol=0, atol=CHUNKING)


def test_a_cancel_that_comes_late_harms_no_later_call(context: LlamaCppContext) -> None:
    late: list[Callable[[], None]] = []

    class Kept(Cancel):
        def calling(self, callback: Callable[[], None]) -> Any:
            late.append(callback)
            return super().calling(callback)

    context.extend([IDS[:10]], Kept())
    late[0]()
    context.extend([IDS[10:20]], Cancel())
    assert context.length == 20


def test_calls_of_several_threads_take_turns(context: LlamaCppContext) -> None:
    failed: list[BaseException] = []

    def extend() -> None:
        try:
            for _ in range(5):
                context.extend([IDS[:3]], Cancel())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=extend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert context.length == 45


def test_a_block_of_both_directions_against_transformers(
    model: LlamaCppLanguageModel, smolvlm_source: Path
) -> None:
    """Wider than what a context computes at once."""
    n, before = 300, 10
    block = BlockEmbeddings(rows(n, seed=3), Block(span=n, causal=False))
    found = afresh(model, IDS[:before], block, IDS[before:20])
    reference = load_reference(smolvlm_source)
    text = reference.model.text_model
    ids = torch.from_numpy(IDS[None, :20])
    with torch.no_grad():
        known = text.get_input_embeddings()(ids)
        parts = [known[:, :before], torch.from_numpy(block.rows)[None], known[:, before:]]
        total = n + 20
        mask = torch.full((total, total), float("-inf")).triu(1)
        mask[before : before + n, before : before + n] = 0
        hidden = text(inputs_embeds=torch.cat(parts, 1), attention_mask=mask[None, None])
        expected = reference.lm_head(hidden.last_hidden_state)[0, -1].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    causal = afresh(model, IDS[:before], block.rows, IDS[before:20])
    assert np.abs(causal - expected).max() > 0.1


def test_blocks_go_out_whole(model: LlamaCppLanguageModel, context: LlamaCppContext) -> None:
    block = BlockEmbeddings(rows(6), Block(span=6, causal=False))
    context.extend([IDS[:4], block, IDS[4:8]], Cancel())
    with pytest.raises(ValueError, match="a picture lies across it"):
        context.truncate(7)
    context.truncate(10)
    context.truncate(4)
    found = context.extend([IDS[4:9]], Cancel())
    np.testing.assert_allclose(found, afresh(model, IDS[:9]), rtol=0, atol=CHUNKING)


def test_positions_of_m_rope() -> None:
    """A picture of 2 x 3 rows of embeddings after 5 tokens, then text (Qwen2-VL, section 2.1)."""
    grid = np.array([(0, row, column) for row in range(2) for column in range(3)], np.int32)
    parts = [IDS[:5], BlockEmbeddings(rows(6), Block(span=3, positions=grid)), IDS[5:7], rows(2)]
    pieces, positions = lay_out(parts, 0, PositionMap(), m_rope=True)
    text, picture, after, plain = (piece.positions.tolist() for piece in pieces)
    assert text == [0, 1, 2, 3, 4]
    assert picture == [[5] * 6, [5, 5, 5, 6, 6, 6], [5, 6, 7, 5, 6, 7], [0] * 6]
    assert after == [8, 9]
    assert plain == [[10, 11], [10, 11], [10, 11], [0, 0]]
    assert [positions.position(row) for row in (0, 5, 11, 13, 15)] == [0, 5, 8, 10, 12]
    assert positions.cut(11).position(11) == 8
    assert positions.cut(5) == PositionMap()


def test_positions_of_its_own_need_a_decoder_that_knows_them(context: LlamaCppContext) -> None:
    grid = np.zeros((4, 3), np.int32)
    for block in (Block(span=2, positions=grid), Block(span=2)):
        with pytest.raises(NotSupported, match="numbers positions one by one"):
            context.extend([BlockEmbeddings(rows(4), block)], Cancel())
    assert context.length == 0


def test_refusals_leave_the_context_as_it_was(
    model: LlamaCppLanguageModel, context: LlamaCppContext
) -> None:
    context.extend([IDS[:5]], Cancel())
    with pytest.raises(ValueError, match="nothing to append"):
        context.extend([np.zeros(0, np.int64)], Cancel())
    with pytest.raises(ModelCorrupt, match="embeddings of 64 numbers, not 65"):
        context.extend([rows(3, 65)], Cancel())
    with pytest.raises(RuntimeFailed, match="invalid token"):
        context.extend([IDS[:3], np.array([model.n_vocab])], Cancel())
    with pytest.raises(PromptTooLong, match="8197 tokens, the context holds 8192"):
        context.extend([np.zeros(8192, np.int64)], Cancel())
    for length in (-1, 6):
        with pytest.raises(ValueError, match="can't cut 5 positions"):
            context.truncate(length)
    assert context.length == 5
    found = context.extend([IDS[5:9]], Cancel())
    np.testing.assert_allclose(found, afresh(model, IDS[:9]), rtol=0, atol=CHUNKING)


def test_a_context_is_as_long_as_was_asked_for(smolvlm_gguf: Path) -> None:
    options = LoadOptions(threads=1, context_length=100)
    model = LlamaCppLanguageModel(llamacpp_files(smolvlm_gguf), options)
    assert (model.context_length, model.d_model) == (100, 64)
    context = model.new_context()
    context.extend([IDS[:100]], Cancel())
    with pytest.raises(PromptTooLong):
        context.extend([IDS[:1]], Cancel())


def test_logits_belong_to_the_caller(context: LlamaCppContext) -> None:
    first = context.extend([IDS[:5]], Cancel())
    kept = first.copy()
    context.extend([IDS[5:6]], Cancel())
    np.testing.assert_array_equal(first, kept)


def test_weights_are_shared_and_go_with_the_last_that_holds_on_to_them(
    smolvlm_gguf: Path, tmp_path: Path
) -> None:
    decoder = tmp_path / "decoder.gguf"
    decoder.hardlink_to(llamacpp_files(smolvlm_gguf).roles["decoder"])
    files = ModelFiles("copy", tmp_path, {"decoder": decoder})
    model, same = (LlamaCppLanguageModel(files, OPTIONS) for _ in range(2))
    assert model.opened() is same.opened()
    same.close()
    weights = weakref.ref(model.opened())
    context = model.new_context()
    context.extend([IDS[:5]], Cancel())
    model.close()
    gc.collect()
    assert weights() is not None
    with pytest.raises(RuntimeFailed, match="The model was closed"):
        context.extend([IDS[:5]], Cancel())
    with pytest.raises(RuntimeFailed, match="The model was closed"):
        model.new_context()
    context.close()
    context.close()
    gc.collect()
    assert weights() is None
    with pytest.raises(RuntimeFailed, match="The context was closed"):
        context.extend([IDS[:5]], Cancel())
    with pytest.raises(RuntimeFailed, match="The context was closed"):
        context.truncate(0)

"""The decoder side of the ONNX runtime on hand-written graphs, against float64 numpy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mini_model import Mini, make_weights, reference_logits, write_decoder, write_model
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions
from edgevlm.errors import Interrupted, PromptTooLong, RuntimeFailed
from edgevlm.runtimes.onnx_decoder import OnnxContext, OnnxLanguageModel
from edgevlm.runtimes.onnx_kv import SharedCache
from edgevlm.runtimes.onnx_layout import CacheLayout, cache_layout
from edgevlm.runtimes.onnx_session import Session

VARIANTS = {
    "plain": Mini(),
    "plain, labelled": Mini(labelled=True),
    "plain, positions from the mask": Mini(positions_from="mask"),
    "plain, positions from the past": Mini(positions_from="past"),
    "plain, float16": Mini(dtype="float16"),
    "gqa": Mini(attention="gqa"),
    "gqa, labelled": Mini(attention="gqa", labelled=True),
    "gqa, positions from the mask": Mini(attention="gqa", positions_from="mask"),
    "gqa, positions from the past": Mini(attention="gqa", positions_from="past"),
    "gqa, float16": Mini(attention="gqa", dtype="float16"),
    "gqa, told how many logits": Mini(attention="gqa", takes_logit_count=True),
}
IN_PLACE = {name for name in VARIANTS if name.startswith("gqa") and "past" not in name}
BOTH = ["plain", "gqa"]


class Fixture:
    """A loaded mini model with its reference."""

    def __init__(self, folder: Path, mini: Mini, context_length: int | None = None) -> None:
        self.mini = mini
        self.weights = make_weights(mini)
        files = write_model(folder, mini, self.weights)
        self.model = OnnxLanguageModel(files, LoadOptions(2, context_length))
        self.random = np.random.default_rng(7)

    def ids(self, count: int) -> NDArray[np.int64]:
        return self.random.integers(0, self.mini.vocab, count)

    def vectors(self, count: int) -> NDArray[np.float32]:
        return self.random.standard_normal((count, self.mini.hidden)).astype(np.float32)

    def check(self, logits: NDArray[np.float32], *sequence: NDArray[np.generic]) -> None:
        """`logits` are those after the whole sequence of ids and embeddings."""
        embed = self.weights["embed"]
        rows = [embed[part] if part.ndim == 1 else part for part in sequence]
        expected = reference_logits(self.mini, self.weights, np.concatenate(rows))[-1]
        tolerance = 1e-4 if self.mini.dtype == "float32" else 0.1
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, atol=tolerance)


def load(folder: Path, name: str, **changes: object) -> Fixture:
    context_length = changes.pop("context_length", None)
    assert context_length is None or isinstance(context_length, int)
    return Fixture(folder, replace(VARIANTS[name], **changes), context_length)  # type: ignore


class CallAtRun(Cancel):
    """Calls `action` (without one, cancels) when the n-th run of a graph begins."""

    def __init__(self, run: int, action: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.runs = 0
        self._run = run
        self._action = action or self.set

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        with super().calling(callback):
            self.runs += 1
            if self.runs == self._run:
                self._action()
            yield


@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_are_read_from_the_graphs(tmp_path: Path, name: str) -> None:
    model = load(tmp_path, name).model
    assert (model.runtime, model.n_vocab, model.d_model, model.context_length) == (
        "onnx",
        37,
        32,
        160,
    )
    assert model.in_place is (name in IN_PLACE)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_a_prompt_and_of_the_steps_after_it(tmp_path: Path, name: str) -> None:
    case = load(tmp_path, name)
    context = case.model.new_context()
    before, picture, after = case.ids(9), case.vectors(12), case.ids(5)
    sequence: list[NDArray[np.generic]] = [before, picture, after]
    case.check(context.extend([before, picture, after], Cancel()), *sequence)
    for _ in range(8):
        step = case.ids(1)
        sequence.append(step)
        case.check(context.extend([step], Cancel()), *sequence)
    assert context.length == 9 + 12 + 5 + 8


@pytest.mark.parametrize("name", BOTH)
def test_a_long_prompt_runs_in_chunks_and_the_cache_grows(tmp_path: Path, name: str) -> None:
    case = load(tmp_path, name, context=1500)
    context = case.model.new_context()
    first, second, third = case.ids(500), case.ids(700), case.ids(200)
    case.check(context.extend([first], Cancel()), first)
    case.check(context.extend([second], Cancel()), first, second)
    case.check(context.extend([third], Cancel()), first, second, third)


@pytest.mark.parametrize("name", VARIANTS)
def test_truncated_and_continued_otherwise(tmp_path: Path, name: str) -> None:
    case = load(tmp_path, name)
    context = case.model.new_context()
    kept, dropped, other = case.ids(11), case.ids(20), case.ids(6)
    context.extend([kept, dropped], Cancel())
    context.truncate(11)
    assert context.length == 11
    case.check(context.extend([other], Cancel()), kept, other)
    context.truncate(0)
    case.check(context.extend([other], Cancel()), other)


@pytest.mark.parametrize("name", BOTH)
def test_truncated_twice_before_it_goes_on(tmp_path: Path, name: str) -> None:
    case = load(tmp_path, name)
    context = case.model.new_context()
    start, rest = case.ids(8), case.ids(3)
    context.extend([start, case.ids(20)], Cancel())
    context.truncate(19)
    context.truncate(8)
    case.check(context.extend([rest], Cancel()), start, rest)
    with pytest.raises(ValueError, match="can't cut"):
        context.truncate(12)


@pytest.mark.parametrize("name", BOTH)
def test_contexts_of_one_model_do_not_mix(tmp_path: Path, name: str) -> None:
    case = load(tmp_path, name)
    one, two = case.model.new_context(), case.model.new_context()
    a, b, c, d = case.ids(10), case.ids(14), case.ids(3), case.ids(4)
    one.extend([a], Cancel())
    two.extend([b], Cancel())
    case.check(one.extend([c], Cancel()), a, c)
    case.check(two.extend([d], Cancel()), b, d)


@pytest.mark.parametrize("name", BOTH)
def test_logits_belong_to_the_caller(tmp_path: Path, name: str) -> None:
    case = load(tmp_path, name)
    context = case.model.new_context()
    first = context.extend([case.ids(4)], Cancel())
    assert first.base is None, "one row, not a view that keeps all four"
    kept = first.copy()
    context.extend([case.ids(4)], Cancel())
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", BOTH)
def test_a_prompt_longer_than_the_context_changes_nothing(tmp_path: Path, name: str) -> None:
    case = load(tmp_path, name, context_length=20)
    assert case.model.context_length == 20
    context = case.model.new_context()
    start, rest = case.ids(12), case.ids(8)
    context.extend([start], Cancel())
    with pytest.raises(PromptTooLong, match="21 tokens, the context holds 20"):
        context.extend([rest, case.ids(1)], Cancel())
    case.check(context.extend([rest], Cancel()), start, rest)


@pytest.mark.parametrize("name", BOTH)
def test_a_context_of_one_token(tmp_path: Path, name: str) -> None:
    case = load(tmp_path, name, context_length=1)
    only = case.ids(1)
    case.check(case.model.new_context().extend([only], Cancel()), only)


def test_the_options_never_raise_the_limit(tmp_path: Path) -> None:
    assert load(tmp_path, "plain", context_length=100_000).model.context_length == 160


def test_nothing_to_append(tmp_path: Path) -> None:
    context = load(tmp_path, "plain").model.new_context()
    with pytest.raises(ValueError, match="nothing"):
        context.extend([np.empty(0, np.int64)], Cancel())


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("run", "count"), [(1, 400), (2, 1000)], ids=["only", "second"])
def test_cancelled_within_its_last_chunk_it_goes_on_as_if_never_asked(
    tmp_path: Path, name: str, run: int, count: int
) -> None:
    case = load(tmp_path, name, context=1500)
    context = case.model.new_context()
    start, rest = case.ids(30), case.ids(5)
    context.extend([start], Cancel())
    cancel = CallAtRun(run)
    with pytest.raises(Interrupted):
        context.extend([case.ids(count)], cancel)
    assert cancel.runs == run
    assert context.length == 30
    case.check(context.extend([rest], Cancel()), start, rest)


@pytest.mark.parametrize("name", BOTH)
def test_cancelled_from_another_thread(tmp_path: Path, name: str) -> None:
    case = load(tmp_path, name, context=12_000, layers=6)
    context = case.model.new_context()
    start, rest = case.ids(30), case.ids(5)
    context.extend([start], Cancel())
    in_decoder = threading.Event()
    cancel = CallAtRun(1, in_decoder.set)
    outcome: list[BaseException] = []
    worker = threading.Thread(target=_collect, args=(context, case.ids(11_000), cancel, outcome))
    worker.start()
    assert in_decoder.wait(30)
    cancel.set()
    worker.join(30)
    assert [type(error) for error in outcome] == [Interrupted]
    case.check(context.extend([rest], Cancel()), start, rest)


def _collect(
    context: OnnxContext, ids: NDArray[np.int64], cancel: Cancel, outcome: list[BaseException]
) -> None:
    try:
        context.extend([ids], cancel)
    except Interrupted as error:
        outcome.append(error)


@pytest.mark.parametrize("name", BOTH)
def test_cancelled_before_it_begins(tmp_path: Path, name: str) -> None:
    context = load(tmp_path, name).model.new_context()
    cancel = Cancel()
    cancel.set()
    with pytest.raises(Interrupted):
        context.extend([np.arange(3)], cancel)
    assert context.length == 0


@pytest.mark.parametrize("name", BOTH)
def test_a_failed_run_changes_nothing(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    case = load(tmp_path, name)
    context = case.model.new_context()
    start, rest = case.ids(6), case.ids(5)
    context.extend([start], Cancel())
    with pytest.raises(RuntimeFailed, match=r"embed_tokens\.onnx: .*out of data bounds") as caught:
        context.extend([np.array([case.mini.vocab])], Cancel())
    assert caught.value.hint
    assert "\n" not in caught.value.message
    with pytest.raises(RuntimeFailed, match=r"decoder\.onnx"):
        context.extend([np.zeros((2, 5), np.float32)], Cancel())
    case.check(context.extend([rest], Cancel()), start, rest)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["gqa"])
def test_no_memory_for_a_longer_cache(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = load(tmp_path, name, context=1500)
    context = case.model.new_context()
    start, rest = case.ids(30), case.ids(600)
    context.extend([start], Cancel())

    def full(layout: CacheLayout, positions: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(CacheLayout, "empty", full)
        with pytest.raises(RuntimeFailed, match="memory for a conversation of 630 tokens"):
            context.extend([rest], Cancel())
    case.check(context.extend([rest], Cancel()), start, rest)


def test_closed(tmp_path: Path) -> None:
    case = load(tmp_path, "plain")
    context = case.model.new_context()
    context.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        context.extend([case.ids(1)], Cancel())
    context = case.model.new_context()
    case.model.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        context.extend([case.ids(1)], Cancel())


def test_in_place_buffers_are_written_and_not_copied(tmp_path: Path) -> None:
    """The claim behind `in_place`, on the cache itself."""
    mini = Mini(attention="gqa")
    write_decoder(tmp_path / "decoder.onnx", mini, make_weights(mini))
    session = Session(tmp_path / "decoder.onnx", threads=1)
    cache = SharedCache(session, cache_layout(session), limit=160)

    def run(length: int, total: int) -> None:
        feeds = {
            "inputs_embeds": np.ones((1, total - length, mini.hidden), np.float32),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(length, total)[None],
        }
        cache.run(feeds, length, total, Cancel())

    run(0, 4)
    buffers = list(cache.buffers)
    assert {buffer.shape for buffer in buffers} == {(1, 2, 160, 8)}
    first = [buffer[:, :, :4].copy() for buffer in buffers]
    run(4, 5)
    for before, after, buffer in zip(first, cache.buffers, buffers, strict=True):
        assert after is buffer
        np.testing.assert_array_equal(after[:, :, :4], before)
        assert after[:, :, 4].any()
        assert not after[:, :, 5:].any()

"""Prefix reuse over a context that records what it was asked to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from edgevlm.engine.adapter import Adapters, LoadedAdapter
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Part
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Block, BlockEmbeddings, ImageInput, ImageSlot, Prompt
from edgevlm.errors import Interrupted, RuntimeFailed

VOCAB, D_MODEL = 16, 4


class RecordingContext:
    """Stands in for a runtime: it keeps the rows it was given, which is all that is asked."""

    def __init__(self) -> None:
        self.rows: list[object] = []
        self.computed = 0
        self.fail = False
        self.blocks: list[BlockEmbeddings] = []
        self.adapters: Adapters = {}

    @property
    def length(self) -> int:
        return len(self.rows)

    def extend(self, parts: Sequence[Part], cancel: Cancel) -> np.ndarray:
        if self.fail:
            raise Interrupted("Stopped.")
        self.blocks = [part for part in parts if isinstance(part, BlockEmbeddings)]
        parts = [part.rows if isinstance(part, BlockEmbeddings) else part for part in parts]
        new = [row if part.ndim == 1 else tuple(row) for part in parts for row in part.tolist()]
        self.rows += new
        self.computed = len(new)
        return np.zeros(VOCAB, np.float32)

    def truncate(self, length: int) -> None:
        del self.rows[length:]

    def use_adapters(self, adapters: Adapters) -> None:
        if self.fail:
            raise RuntimeFailed("No memory.")
        self.adapters = adapters

    def close(self) -> None:
        self.rows = []


class Resident:
    def __init__(self, digest: str) -> None:
        self.name = self.digest = digest

    def close(self) -> None: ...


def picture(key: str, tokens: int = 3) -> ImageInput:
    return ImageInput(np.zeros((1, 3, 2, 2), np.float32), None, (0, 0), tokens, key)


def embeddings(prompt: Prompt, i: int) -> np.ndarray:
    image = prompt.images[i]
    base = float(sum(image.key.encode()))
    rows = np.arange(image.n_tokens, dtype=np.float32)[:, None] + base
    return np.repeat(rows, D_MODEL, axis=1)


def prefill(context: PrefixContext, prompt: Prompt) -> tuple[int, list[int]]:
    """Return (positions kept, images embedded)."""
    embedded: list[int] = []

    def embed(i: int) -> np.ndarray:
        embedded.append(i)
        return embeddings(prompt, i)

    _, kept = context.prefill(prompt, embed, Cancel())
    return kept, embedded


def rows_of(prompt: Prompt) -> list[object]:
    """What a context holds after the whole prompt, computed afresh."""
    context = RecordingContext()
    prefill(PrefixContext(context), prompt)
    return context.rows


@pytest.fixture
def recording() -> RecordingContext:
    return RecordingContext()


FIRST = Prompt(((1, 2), ImageSlot(0, 0, 3), (3, 4)), (picture("cat"),))


def test_a_follow_up_computes_only_its_end(recording: RecordingContext) -> None:
    context = PrefixContext(recording)
    prefill(context, FIRST)
    context.extend(9, Cancel())
    longer = Prompt(((1, 2), ImageSlot(0, 0, 3), (3, 4, 9, 5, 6)), FIRST.images)
    assert context.needs(longer) == set()
    assert prefill(context, longer) == (8, [])
    assert recording.computed == 2
    assert recording.rows == rows_of(longer)


def test_the_same_prompt_again_computes_its_last_position(recording: RecordingContext) -> None:
    context = PrefixContext(recording)
    prefill(context, FIRST)
    assert prefill(context, FIRST) == (6, [])
    assert recording.computed == 1


def test_another_picture_is_never_reused(recording: RecordingContext) -> None:
    context = PrefixContext(recording)
    prefill(context, FIRST)
    other = Prompt(FIRST.parts, (picture("dog"),))
    assert context.needs(other) == {0}
    assert prefill(context, other) == (2, [0])
    assert recording.rows == rows_of(other)


def test_a_changed_system_prompt_reuses_nothing(recording: RecordingContext) -> None:
    context = PrefixContext(recording)
    prefill(context, FIRST)
    other = Prompt(((7, 2), ImageSlot(0, 0, 3), (3, 4)), FIRST.images)
    assert prefill(context, other) == (0, [0])
    assert recording.rows == rows_of(other)


def test_a_shorter_prompt_drops_what_followed(recording: RecordingContext) -> None:
    context = PrefixContext(recording)
    prefill(context, FIRST)
    shorter = Prompt(((1, 2, 8),))
    assert prefill(context, shorter) == (2, [])
    assert recording.rows == [1, 2, 8]


def test_reuse_may_end_inside_a_picture(recording: RecordingContext) -> None:
    """Two tiles of one picture, the second laid out elsewhere: its rows differ from there on."""
    two = picture("cat", 4)
    context = PrefixContext(recording)
    prefill(context, Prompt(((1,), ImageSlot(0, 0, 4), (5,)), (two,)))
    split = Prompt(((1,), ImageSlot(0, 0, 2), (6,), ImageSlot(0, 2, 2), (5,)), (two,))
    assert prefill(context, split) == (3, [0])
    assert recording.rows == rows_of(split)


def test_an_interrupted_prefill_leaves_no_stale_keys(recording: RecordingContext) -> None:
    context = PrefixContext(recording)
    prefill(context, FIRST)
    other = Prompt(((1, 9, 9, 9),))
    recording.fail = True
    with pytest.raises(Interrupted):
        prefill(context, other)
    recording.fail = False
    assert prefill(context, other) == (1, [])
    assert recording.rows == rows_of(other)
    assert prefill(context, FIRST) == (1, [0])
    assert recording.rows == rows_of(FIRST)


def test_a_block_goes_in_whole_or_not_at_all() -> None:
    block = Block(span=2, positions=np.zeros((3, 3), np.int32))
    image = replace(picture("a"), block=block)
    slot = ImageSlot(0, 0, 3)
    recorder = RecordingContext()
    context = PrefixContext(recorder)
    # The last position is always computed, and here it is inside the block.
    prompt = Prompt(((1, 2), slot), (image,))
    for kept in (0, 2):
        assert prefill(context, prompt) == (kept, [0])
        (given,) = recorder.blocks
        assert given.block is block
        assert len(given) == 3
    assert prefill(context, Prompt(((1, 2), slot, (5,)), (image,))) == (5, [])


A, B = Resident("a"), Resident("b")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {A: 1.0}),
        ({A: 1.0}, {}),
        ({A: 1.0}, {B: 1.0}),
        ({A: 1.0}, {A: 0.5}),
        ({A: 1.0, B: 0.5}, {A: 0.5, B: 1.0}),
        ({A: 1.0}, {A: 1.0, B: 1.0}),
    ],
)
def test_nothing_is_reused_across_adapters(
    recording: RecordingContext,
    before: dict[LoadedAdapter, float],
    after: dict[LoadedAdapter, float],
) -> None:
    context = PrefixContext(recording)
    context.use_adapters(before)
    prefill(context, FIRST)
    context.extend(9, Cancel())
    context.use_adapters(after)
    assert recording.adapters == after
    assert context.needs(FIRST) == {0}
    assert prefill(context, FIRST) == (0, [0])
    assert prefill(context, FIRST) == (6, [])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({A: 1.0, B: 0.5}, {B: 0.5, A: 1.0}),
        ({A: 1.0}, {Resident("a"): 1.0}),
        ({A: 1.0}, {A: 1.0, B: 0.0}),
        ({}, {A: 0.0}),
    ],
    ids=["another order", "the same content", "a scale of 0 beside it", "a scale of 0 alone"],
)
def test_the_same_adapters_reuse_everything(
    recording: RecordingContext,
    before: dict[LoadedAdapter, float],
    after: dict[LoadedAdapter, float],
) -> None:
    context = PrefixContext(recording)
    context.use_adapters(before)
    prefill(context, FIRST)
    context.extend(9, Cancel())
    context.use_adapters(after)
    longer = Prompt((*FIRST.parts, (9, 5)), FIRST.images)
    assert prefill(context, longer) == (8, [])


def test_a_token_of_another_adapter_is_not_reused(recording: RecordingContext) -> None:
    context = PrefixContext(recording)
    prefill(context, Prompt(((1, 2),)))
    context.use_adapters({A: 1.0})
    context.extend(9, Cancel())
    context.use_adapters({})
    assert prefill(context, Prompt(((1, 2, 9, 5),))) == (2, [])


def test_adapters_that_are_not_taken_leave_all_as_it_was(recording: RecordingContext) -> None:
    context = PrefixContext(recording)
    prefill(context, FIRST)
    recording.fail = True
    with pytest.raises(RuntimeFailed):
        context.use_adapters({A: 1.0})
    recording.fail = False
    assert recording.adapters == {}
    assert prefill(context, FIRST) == (6, [])

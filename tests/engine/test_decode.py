"""The decode loop over scripted logits: what it says of each token, and when it ends."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.decode import decode
from edgevlm.engine.sampling import Sampling
from edgevlm.errors import Interrupted, RuntimeFailed
from edgevlm.messages import FinishReason, Token

VOCAB = 320
END = 0


class Script:
    """Logits that make the given ids the most likely, one after another."""

    def __init__(self, ids: list[int], *, then: int = END) -> None:
        self.ids = [*ids, then]
        self.steps = 0
        self.rng = np.random.default_rng(0)

    def logits(self) -> np.ndarray:
        logits = self.rng.normal(size=VOCAB).astype(np.float32)
        logits[self.ids[min(self.steps, len(self.ids) - 1)]] = 20
        return logits

    def step(self, token_id: int) -> np.ndarray:
        assert token_id == self.ids[min(self.steps, len(self.ids) - 1)]
        self.steps += 1
        return self.logits()


def run(
    script: Script, tokenizer: Tokenizer, cancel: Cancel | None = None, **options: object
) -> tuple[list[Token], FinishReason]:
    room = options.pop("room", None)
    steps = decode(
        script.logits(),
        script.step,
        tokenizer,
        Sampling(**options),  # type: ignore[arg-type]
        stop_ids=frozenset({END}),
        cancel=cancel or Cancel(),
        room=room,  # type: ignore[arg-type]
    )
    tokens: list[Token] = []
    while True:
        try:
            tokens.append(next(steps))
        except StopIteration as end:
            return tokens, end.value


def text_of(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


def test_ends_at_a_stop_id_and_yields_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a cup of coffee").ids
    tokens, finish = run(Script(ids), tokenizer)
    assert finish == "stop"
    assert [t.id for t in tokens] == [*ids, END]
    assert text_of(tokens) == "a cup of coffee"


def test_max_tokens_ends_with_length_and_no_further_step(tokenizer: Tokenizer) -> None:
    script = Script(tokenizer.encode("a cup of coffee on the table").ids)
    tokens, finish = run(script, tokenizer, max_tokens=3)
    assert finish == "length"
    assert len(tokens) == 3
    assert script.steps == 2


def test_a_full_context_ends_with_length(tokenizer: Tokenizer) -> None:
    script = Script(tokenizer.encode("a cup of coffee on the table").ids)
    tokens, finish = run(script, tokenizer, room=4)
    assert finish == "length"
    assert script.steps == 4
    assert len(tokens) == 5


@pytest.mark.parametrize("text", ["naïve café", "日本語です", "👩‍👩‍👧 a family", "ends in é"])
def test_never_splits_a_character(tokenizer: Tokenizer, text: str) -> None:
    tokens, _ = run(Script(tokenizer.encode(text).ids), tokenizer)
    assert text_of(tokens) == text
    assert not any("\ufffd" in t.text for t in tokens)


def test_bytes_that_are_no_character_are_flushed_at_the_end(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("é").ids[:1]
    tokens, _ = run(Script([*tokenizer.encode("cup").ids, *half]), tokenizer)
    assert text_of(tokens) == "cup\ufffd"


def test_a_broken_byte_holds_nothing_back_for_good(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("é").ids[:1]
    tokens, _ = run(Script([*half, *tokenizer.encode("日 cup").ids]), tokenizer)
    assert text_of(tokens) == "\ufffd日 cup"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("coffee", "a cup of "), ("of co", "a cup "), ("zebra", "a cup of coffee"), ("a", "")],
)
def test_stop_strings_across_token_borders(tokenizer: Tokenizer, stop: str, expected: str) -> None:
    ids = [i for c in "a cup of coffee" for i in tokenizer.encode(c).ids]  # a token a letter
    tokens, finish = run(Script(ids), tokenizer, stop=(stop,))
    assert text_of(tokens) == expected
    assert finish == "stop"


def test_text_that_only_begins_a_stop_string_is_released(tokenizer: Tokenizer) -> None:
    ids = [i for c in "coffee cof" for i in tokenizer.encode(c).ids]
    tokens, finish = run(Script(ids), tokenizer, stop=("coffin",), max_tokens=len(ids))
    assert text_of(tokens) == "coffee cof"
    assert finish == "length"


def test_the_earliest_of_several_stops_wins(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a cup of coffee").ids
    tokens, _ = run(Script(ids), tokenizer, stop=("coffee", "of"))
    assert text_of(tokens) == "a cup "


def test_logprobs_are_the_models_own(tokenizer: Tokenizer) -> None:
    """Raw log-softmax, untouched by temperature, filters or penalties."""
    script = Script(tokenizer.encode("cup").ids)
    raw = script.logits()
    script.rng = np.random.default_rng(0)
    steps = decode(
        script.logits(),
        script.step,
        tokenizer,
        Sampling(temperature=5, top_k=3, repetition_penalty=2, seed=1, top_logprobs=4),
        stop_ids=frozenset(),
        cancel=Cancel(),
        seen=[1, 2, 3],
    )
    first = next(steps)
    reference = raw.astype(np.float64) - np.log(np.exp(raw.astype(np.float64)).sum())
    assert first.logprob == pytest.approx(reference[first.id], abs=1e-5)
    best = np.argsort(-reference)[:4]
    assert [c.id for c in first.top] == list(best)
    assert [c.logprob for c in first.top] == pytest.approx(list(reference[best]), abs=1e-5)
    assert first.top[0].text == tokenizer.decode([int(best[0])], skip_special_tokens=False)


def test_cancel_between_tokens(tokenizer: Tokenizer) -> None:
    script, cancel = Script(tokenizer.encode("a cup of coffee").ids), Cancel()
    steps = decode(
        script.logits(), script.step, tokenizer, Sampling(), stop_ids=frozenset(), cancel=cancel
    )
    next(steps)
    cancel.set()
    with pytest.raises(StopIteration) as end:
        next(steps)
    # The step under way may finish; nothing is yielded after a cancel.
    assert end.value.value == "cancelled"


def test_cancel_inside_a_step(tokenizer: Tokenizer) -> None:
    script = Script(tokenizer.encode("a cup").ids)

    def interrupted(token_id: int) -> np.ndarray:
        raise Interrupted("Stopped.")

    steps = decode(
        script.logits(), interrupted, tokenizer, Sampling(), stop_ids=frozenset(), cancel=Cancel()
    )
    next(steps)
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == "cancelled"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(tokenizer: Tokenizer, temperature: float) -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[7] = np.nan
    sampling = Sampling(temperature=temperature)
    steps = decode(
        logits, lambda _: logits, tokenizer, sampling, stop_ids=frozenset(), cancel=Cancel()
    )
    with pytest.raises(RuntimeFailed, match="not finite"):
        next(steps)

"""The one decode loop: every runtime's tokens come from here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Logits
from edgevlm.engine.sampling import Sampler, Sampling, log_normalizer, top_k_ids
from edgevlm.engine.text import Detokenizer, StopFilter
from edgevlm.errors import Interrupted
from edgevlm.messages import FinishReason, Token, TopToken


class LogitMask(Protocol):
    """What may be chosen next, of one answer. It never touches what the model itself thought."""

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing more may follow."""

    def apply(self, logits: Logits) -> Logits:
        """A copy of logits [n_vocab] with -inf for what may not come next."""

    def accept(self, token_id: int) -> None:
        """Go on to what may follow `token_id`."""


def decode(
    logits: Logits,
    step: Callable[[int], Logits],
    tokenizer: Tokenizer,
    sampling: Sampling,
    *,
    stop_ids: frozenset[int],
    cancel: Cancel,
    seen: Iterable[int] = (),
    room: int | None = None,
    mask: LogitMask | None = None,
) -> Generator[Token, None, FinishReason]:
    """Yield one Token a step, the stop token included, and return why it ended.

    `logits` [n_vocab] are of the prompt's last position; `step(id)` appends an id and
    returns the next ones. `seen` are the prompt's ids, for a repetition penalty; `room`
    is how many more positions the context holds; `mask` rules what may be chosen, and ends
    the answer where nothing may follow. A cancel ends the stream without an error, and
    without what was held back of an unfinished character or stop string.
    Raises RuntimeFailed where logits are not finite, and what `step` raises but Interrupted,
    and what `mask` raises.
    """
    sampler = Sampler(sampling, seen)
    detokenizer = Detokenizer(tokenizer)
    stops = StopFilter(sampling.stop)
    scratch = np.empty_like(logits)
    limit = sampling.max_tokens if room is None else min(sampling.max_tokens, room + 1)
    for count in range(1, limit + 1):
        if cancel.is_set:
            return "cancelled"
        # First of all, since it refuses logits that are not finite: no draw can be made of them.
        normalizer = log_normalizer(logits, scratch)
        chosen = sampler.choose(logits if mask is None else mask.apply(logits))
        ended = chosen in stop_ids
        text, met = stops.push("" if ended else detokenizer.push(chosen))
        if mask is not None:
            mask.accept(chosen)
            ended = ended or mask.finished
        last = ended or met or count == limit
        if last and not met:
            rest, met = stops.push(detokenizer.flush())
            text += rest if met else rest + stops.flush()
        yield Token(
            id=chosen,
            text=text,
            logprob=float(logits[chosen]) - normalizer,
            top=_top(logits, normalizer, sampling.top_logprobs, tokenizer),
        )
        if last:
            return "stop" if ended or met else "length"
        try:
            logits = step(chosen)
        except Interrupted:
            return "cancelled"
    return "length"


def _top(
    logits: Logits, normalizer: float, count: int, tokenizer: Tokenizer
) -> tuple[TopToken, ...]:
    if not count:
        return ()
    return tuple(
        TopToken(
            id=int(i),
            text=tokenizer.decode([int(i)], skip_special_tokens=False),
            logprob=float(logits[i]) - normalizer,
        )
        for i in top_k_ids(logits, count)
    )

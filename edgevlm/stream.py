"""An answer on its way: its tokens as they come, and what they took."""

from __future__ import annotations

import inspect
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from edgevlm.errors import UsageError
from edgevlm.messages import FinishReason, Reply, Timings, Token


class Stream(Iterator[Token]):
    """The tokens of one answer as they come; `reply` holds the whole once they have."""

    def __init__(self, answer: Generator[Token, None, Reply]) -> None:
        self._answer = answer
        self._reply: Reply | None = None

    def __next__(self) -> Token:
        try:
            return next(self._answer)
        except StopIteration as end:
            if end.value is not None:
                self._reply = end.value
            raise StopIteration from None

    @property
    def running(self) -> bool:
        """Whether a thread is inside the stream at this moment."""
        return inspect.getgeneratorstate(self._answer) == inspect.GEN_RUNNING

    @property
    def reply(self) -> Reply:
        """The finished answer. Raises UsageError while tokens are still to come."""
        if self._reply is None:
            raise UsageError("The answer isn't finished.", hint="Read the stream to its end first.")
        return self._reply

    def close(self) -> None:
        """End the answer here; the conversation keeps what was read."""
        try:
            self._answer.close()
        except ValueError as running:  # a generator that another thread is inside
            raise UsageError(
                "This session is answering in another thread.",
                hint="Use one session a thread (they can share a Model), or cancel() first.",
            ) from running


@dataclass(slots=True)
class Clock:
    """Moments of one answer, in seconds of `time.perf_counter`."""

    started: float = field(default_factory=time.perf_counter)
    vision: float = 0.0
    first: float | None = None
    last: float = 0.0

    def tick(self) -> None:
        self.last = time.perf_counter()
        if self.first is None:
            self.first = self.last

    def timings(self, tokens: int, load_ms: float) -> Timings:
        first = self.first or time.perf_counter()
        decoding = self.last - first
        return Timings(
            load_ms=load_ms,
            vision_ms=self.vision * 1000,
            ttft_ms=(first - self.started) * 1000,
            decode_tps=(tokens - 1) / decoding if tokens > 1 and decoding > 0 else 0.0,
            total_ms=(time.perf_counter() - self.started) * 1000,
        )


def collect(
    steps: Generator[Token, None, FinishReason], tokens: list[Token], clock: Clock
) -> Generator[Token, None, FinishReason]:
    """Pass the steps on, each kept in `tokens` and timed; returns why they ended."""
    while True:
        try:
            token = next(steps)
        except StopIteration as end:
            finish: FinishReason = end.value
            return finish
        clock.tick()
        tokens.append(token)
        yield token

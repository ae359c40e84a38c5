"""One question to a provider: its tries, what they cost, and the receipt.

One deadline covers all tries. A try is made again only while nothing of an answer was read.
Money is reserved before each and settled after it; where it isn't known what a try has cost,
it counts as the most that it can have.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from edgevlm.engine.cancel import Cancel
from edgevlm.errors import (
    CloudAnswerBroken,
    CloudError,
    CloudNotAllowed,
    CloudRefused,
    CloudUnavailable,
    UsageError,
)
from edgevlm.messages import FinishReason, Sent
from edgevlm.routing.attempt import Attempt, Dialect, Finished
from edgevlm.routing.breaker import Breaker
from edgevlm.routing.keys import Key
from edgevlm.routing.ledger import Ledger, Reservation
from edgevlm.routing.line import Deadline
from edgevlm.routing.prices import Tokens, dollars
from edgevlm.routing.provider import Provider
from edgevlm.routing.rejected import Rejected
from edgevlm.routing.request import ChatRequest
from edgevlm.routing.retry import RETRIED, backoff, retry_after

_log = logging.getLogger(__name__)

# Waits so many seconds, or until cancelled.
Wait: TypeAlias = Callable[[float, Cancel], None]


def wait(seconds: float, cancel: Cancel) -> None:
    woken = threading.Event()
    with cancel.calling(woken.set):
        woken.wait(seconds)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What left the device for one call, over all its tries, to whom, and what it cost.

    `cost_usd` is None where the price is unknown, and with `at_most` the most it can have been.
    `pictures` are the SHA-256 of the files that were sent.
    """

    provider: str
    model: str
    sent: Sent = field(default_factory=Sent)
    pictures: tuple[str, ...] = ()
    cost_usd: float | None = 0.0
    at_most: bool = False
    tries: int = 0


@dataclass(frozen=True, slots=True)
class CloudAnswer:
    """`tokens` as the provider counts them, None where it doesn't."""

    text: str
    finish_reason: FinishReason
    receipt: Receipt
    tokens: Tokens | None
    seconds: float

    @property
    def model(self) -> str:
        return self.receipt.model

    @property
    def provider(self) -> str:
        return self.receipt.provider

    @property
    def sent(self) -> Sent:
        return self.receipt.sent

    @property
    def cost_usd(self) -> float | None:
        return self.receipt.cost_usd


@dataclass(frozen=True, slots=True)
class Office:
    """What all calls to one provider share."""

    provider: Provider
    ledger: Ledger
    breaker: Breaker
    dialect: Dialect
    wait: Wait

    def cost(self, tokens: Tokens) -> int | None:
        """In nano-dollars, None where the price is unknown."""
        prices = self.provider.prices
        return None if prices is None else prices.cost(tokens)

    def check_rest(self, left: float) -> None:
        """Raise CloudUnavailable where the breaker has it left alone for so many seconds."""
        if left > 0:
            raise CloudUnavailable(
                f"{self.provider.called} has failed again and again, and is left alone for"
                f" {left:.0f} s.",
                hint="Ask again later.",
            )


class CloudStream(Iterator[str]):
    """The text of one answer as it comes. `receipt` holds at any time, after an error too."""

    def __init__(
        self,
        office: Office,
        prepare: Callable[[], tuple[ChatRequest, Key | None]],
        cancel: Cancel,
        timeout_s: float,
        took: Callable[[float], None],
    ) -> None:
        """`prepare` checks that this may be asked, before anything is sent; `took` is told the
        seconds of a whole answer."""
        self._office = office
        self._provider = office.provider
        self._cancel = cancel
        self._timeout_s = timeout_s
        self._took = took
        self._text: list[str] = []
        self._answer: CloudAnswer | None = None
        self._pieces = self._run(prepare)
        self.receipt = Receipt(self._provider.base_url, self._provider.model)

    def __next__(self) -> str:
        piece = next(self._pieces)
        self._text.append(piece)
        return piece

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._text).strip()

    @property
    def answer(self) -> CloudAnswer:
        """The whole. Raises UsageError while there is text to come."""
        if self._answer is None:
            raise UsageError("The answer isn't finished.", hint="Read the stream to its end first.")
        return self._answer

    def close(self) -> None:
        """End the answer here, and its connection. What it may have cost is counted."""
        self._pieces.close()

    def _run(
        self, prepare: Callable[[], tuple[ChatRequest, Key | None]]
    ) -> Generator[str, None, None]:
        started, deadline = time.monotonic(), Deadline(self._timeout_s)
        request, key = prepare()
        finished = yield from self._tries(request, key, deadline)
        seconds = time.monotonic() - started
        self._took(seconds)
        self._answer = CloudAnswer(
            self.text, finished.finish_reason, self.receipt, finished.tokens, seconds
        )

    def _tries(
        self, request: ChatRequest, key: Key | None, deadline: Deadline
    ) -> Generator[str, None, Finished]:
        failures = 0
        last: CloudError | None = None
        while True:
            self._cancel.check()
            left = self._office.breaker.enter()
            if left > 0 and last is not None:  # its own failures have opened it
                raise last
            self._office.check_rest(left)
            try:
                return (yield from self._try(request, key, deadline))
            except Rejected as error:
                if error.status in (400, 422) and self._office.dialect.learn(error.message):
                    continue
                asked_pause = retry_after(error.headers) or 0.0
                last = self._refusal(error, asked_pause)
                again = last.retryable
            except CloudNotAllowed as error:  # a budget that the tries before have used up
                raise last or error from None
            except CloudUnavailable as error:
                last, asked_pause = error, 0.0
                again = error.retryable and not self._text
            failures += 1
            pause = max(backoff(failures), asked_pause)
            if not again or failures >= self._provider.limits.attempts or pause >= deadline.left():
                raise last
            self._office.wait(pause, self._cancel)

    def _try(
        self, request: ChatRequest, key: Key | None, deadline: Deadline
    ) -> Generator[str, None, Finished]:
        office = self._office
        worst = office.cost(request.worst)
        reservation = office.ledger.reserve(self._provider, worst)
        attempt = Attempt(self._provider, key, request, office.dialect, deadline, self._cancel)
        tokens: Tokens | None = None
        free = False
        try:
            finished = yield from attempt.run()
            tokens = finished.tokens
            office.breaker.succeeded()
            return finished
        except Rejected as error:
            free = error.status < 500
            (office.breaker.failed if error.status in RETRIED else office.breaker.succeeded)()
            raise
        except (CloudUnavailable, CloudAnswerBroken):
            office.breaker.failed()
            raise
        finally:
            self._book(request, attempt, reservation, tokens, free=free)

    def _book(
        self,
        request: ChatRequest,
        attempt: Attempt,
        reservation: Reservation,
        tokens: Tokens | None,
        *,
        free: bool,
    ) -> None:
        office, before = self._office, self.receipt
        # One that gave more than it was asked for may take more for it, too.
        most = Tokens(request.worst.prompt, max(request.worst.completion, attempt.text_bytes))
        free = free or not attempt.sent
        cost = office.cost(Tokens(0, 0) if free else tokens or most)
        self.receipt = replace(
            before,
            sent=_sum(before.sent, request.sent) if attempt.sent else before.sent,
            pictures=tuple(p.sha256 for p in request.pictures) if attempt.sent else before.pictures,
            cost_usd=None if cost is None else (before.cost_usd or 0.0) + dollars(cost),
            at_most=before.at_most or not (free or tokens),
            tries=before.tries + 1,
        )
        try:
            if free:
                office.ledger.release(reservation)
            else:
                office.ledger.settle(reservation, cost)
        except CloudNotAllowed as error:
            # The answer is there and paid for; its reservation stays, which is no less.
            _log.warning("%s", error.message)

    def _refusal(self, error: Rejected, pause: float) -> CloudError:
        called, status, said = self._provider.called, error.status, error.message
        answered = f"{called} answered HTTP {status}: {said or 'nothing more'}"
        if status == 401 or status == 403:
            return CloudRefused(
                f"{called} rejected the key (HTTP {status}): {said or 'nothing more'}",
                hint=f"Set {self._provider.api_key_env} to a key of {self._provider.host}.",
            )
        if status == 404:
            return CloudRefused(
                answered, hint="Check the base URL and the model's name: `edgevlm cloud status`."
            )
        unpaid = "insufficient_quota" in said or ("billing" in said and not pause)
        if status not in RETRIED or unpaid:
            return CloudRefused(answered, hint="Mend what it names, or use route local.")
        wait = f" It asks to wait {pause:.0f} s." if pause else ""
        return CloudUnavailable(answered, hint=f"Ask again later.{wait}")


def _sum(one: Sent, other: Sent) -> Sent:
    return Sent(
        one.text_bytes + other.text_bytes,
        one.image_bytes + other.image_bytes,
        one.embedding_bytes + other.embedding_bytes,
    )

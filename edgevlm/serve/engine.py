"""One thread that computes all answers, in turn: a few tokens of one, then of the next.

An answer that is long does not hold up one that is short, and each has a context of its own.
Contexts outlive their answers, so that a follow-up, or another question about the same picture,
computes only what is new.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import TypeAlias

from edgevlm.engine.prompt import Prompt
from edgevlm.errors import RuntimeFailed
from edgevlm.judge import Judge
from edgevlm.messages import Reply, Token
from edgevlm.model import Model
from edgevlm.serve.errors import ApiError
from edgevlm.serve.turns import FairQueue
from edgevlm.slot import Request, Slot

Event: TypeAlias = Token | Reply | BaseException

# Tokens of one answer before the next has its turn: going over to another context costs
# llama.cpp a tenth of a token's time.
TURN = 4

_log = logging.getLogger("edgevlm.serve")


@dataclass(eq=False, slots=True)
class Job:
    """One answer: `tell` gets its tokens, and last its reply or what went wrong. It is called
    on the engine's thread. `started` and `arrived` are seconds of `time.perf_counter`."""

    client: Hashable
    prompt: Prompt
    request: Request
    tell: Callable[[Event], None]
    arrived: float = field(default_factory=time.perf_counter)
    started: float | None = None

    @property
    def queue_ms(self) -> float:
        return ((self.started or time.perf_counter()) - self.arrived) * 1000


@dataclass(eq=False, slots=True)
class _Active:
    job: Job
    slot: Slot
    tokens: Generator[Token, None, Reply]


class Engine:
    """`parallel` answers take turns, over `contexts` contexts; `queue_size` more may wait."""

    def __init__(
        self, model: Model, judge: Judge, *, parallel: int, contexts: int, queue_size: int
    ) -> None:
        self.model = model
        self._judge = judge
        self._parallel = parallel
        self._contexts = max(contexts, parallel)
        # What is handed to the thread waits a moment too, though it need not wait its turn.
        self._queue: FairQueue[Job] = FairQueue(queue_size + parallel)
        self._queue_size = queue_size
        self._active: list[_Active] = []
        self._idle: list[Slot] = []  # the one used last is last
        self._changed = threading.Condition()
        self._draining = False
        self._closed = False
        self._seconds = 1.0  # what an answer took, as a running mean
        self._thread = threading.Thread(target=self._run, name="edgevlm-engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self._thread.is_alive() and not self._draining

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def contexts(self) -> int:
        return len(self._active) + len(self._idle)

    def check_room(self) -> None:
        """Raise ApiError where the queue is full, or the server is ending."""
        if not self.ready:
            raise ApiError(503, "The server is ending. Start it again.", retry_after=5)
        if self.queued + self.active >= self._queue_size + self._parallel:
            raise ApiError(
                429,
                "Too many requests are waiting. Try again later.",
                code="queue_full",
                retry_after=max(1, round(self._seconds * self.queued / self._parallel)),
            )

    def submit(self, job: Job) -> None:
        """Have a job done. Raises what `check_room` does."""
        with self._changed:
            self.check_room()
            self._queue.put(job.client, job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stop a job, from any thread: at once where it waits, else within what its runtime
        takes to notice. It is told as any other end, a reply that is `cancelled`."""
        job.request.cancel.set()
        with self._changed:
            waiting = self._queue.remove(job.client, job)
        if waiting:
            job.tell(ApiError(499, "The request was cancelled.", code="cancelled"))

    def drain(self) -> None:
        """Take no more jobs; those here go on."""
        with self._changed:
            self._draining = True

    def close(self) -> None:
        """Stop every job and end the thread."""
        with self._changed:
            self._draining = self._closed = True
            for active in self._active:
                active.job.request.cancel.set()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._admit():
                for active in list(self._active):
                    self._turn(active)
        finally:
            for slot in (*(active.slot for active in self._active), *self._idle):
                slot.close()
            self._active, self._idle = [], []

    def _admit(self) -> bool:
        """Give waiting jobs a slot; wait where there is nothing to do. False at the end."""
        with self._changed:
            while not (self._closed or self._active or self._queue):
                self._changed.wait()
            if self._closed:
                self._refuse_waiting()
                return bool(self._active)
            jobs: list[Job] = []
            while self._queue and len(self._active) + len(jobs) < self._parallel:
                jobs.append(self._queue.get())
        for job in jobs:
            self._begin(job)
        return True

    def _refuse_waiting(self) -> None:
        while self._queue:
            self._queue.get().tell(ApiError(503, "The server is ending.", retry_after=5))

    def _begin(self, job: Job) -> None:
        job.started = time.perf_counter()
        try:
            slot = self._slot_for(job)
        except Exception as error:
            _log.exception("no context for an answer")
            job.tell(error)
            return
        self._active.append(_Active(job, slot, slot.answer(lambda: job.prompt, job.request)))

    def _slot_for(self, job: Job) -> Slot:
        """The idle context that saves most by what it holds, a new one, or the one that was
        used longest ago."""
        saved = {slot: _saved(slot, job) for slot in self._idle}
        best = max(self._idle, key=saved.__getitem__, default=None)
        if best is None or saved[best] <= 0:
            if self.contexts < self._contexts:
                return Slot(self.model, self._judge)
            best = self._idle[0]
        self._idle.remove(best)
        return best

    def _turn(self, active: _Active) -> None:
        try:
            for _ in range(TURN):
                active.job.tell(next(active.tokens))
        except StopIteration as end:
            self._end(active, end.value)
        except Exception as error:
            if isinstance(error, RuntimeFailed) or not hasattr(error, "hint"):
                _log.exception("an answer failed")
            self._end(active, error)

    def _end(self, active: _Active, outcome: Reply | BaseException) -> None:
        self._active.remove(active)
        if isinstance(outcome, Reply):
            self._idle.append(active.slot)
            took = time.perf_counter() - (active.job.started or 0)
            self._seconds += 0.2 * (took - self._seconds)
        else:  # nobody knows what its context holds now
            active.slot.close()
        active.job.tell(outcome)


def _saved(slot: Slot, job: Job) -> int:
    """Positions that need not be computed, less those that a conversation loses by it."""
    shared = slot.shared(job.prompt, job.request.adapters)
    return shared - (slot.length - shared)

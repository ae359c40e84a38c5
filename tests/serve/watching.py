"""Looking into a server's engine, and holding it up, while a client waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving import Running

from edgevlm.adapters.resident import ActiveSet
from edgevlm.engine.sampling import Sampling
from edgevlm.families.base import Turn
from edgevlm.messages import Route
from edgevlm.serve.engine import Event, Job
from edgevlm.slot import Request


@contextmanager
def jobs_of(server: Running) -> Iterator[list[Job]]:
    """The jobs that the engine is given within the block."""
    engine, jobs = server.server.engine, list[Job]()
    submit = engine.submit

    def noted(job: Job) -> None:
        jobs.append(job)
        submit(job)

    engine.submit = noted  # type: ignore[method-assign]
    try:
        yield jobs
    finally:
        del engine.submit


@contextmanager
def held(server: Running) -> Iterator[Callable[[], None]]:
    """Within the block the engine's thread stands still, amid an answer to somebody else, until
    what this yields is called."""
    inside, go = threading.Event(), threading.Event()

    def tell(_: Event) -> None:
        inside.set()
        go.wait(60)

    server.server.engine.submit(job_of(server, tell))
    assert inside.wait(30)
    try:
        yield go.set
    finally:
        go.set()


def job_of(server: Running, tell: Callable[[Event], None] = lambda _: None) -> Job:
    """A short answer that no client asked for."""
    prompt = server.server.model.family.render([Turn("user", ("Hello.",))])
    request = Request(Sampling(max_tokens=2), None, ActiveSet([]), Route("local", "a test"))
    return Job("a test", prompt, request, tell)


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Ask again and again, and fail where it does not become so."""
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it does not come about"

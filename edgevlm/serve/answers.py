"""An answer between the engine's thread and the event loop, and when it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.types import Receive

from edgevlm.messages import Reply, Token
from edgevlm.serve.engine import Engine, Event, Job
from edgevlm.serve.errors import ApiError


async def when_gone(receive: Receive, act: Callable[[], None]) -> None:
    """Wait until the client of a request, whose body was read, leaves; then act."""
    while (await receive())["type"] != "http.disconnect":
        pass
    act()


class Events:
    """What the engine tells of a job, as the event loop reads it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._items.put_nowait, event)

    async def get(self) -> Event:
        return await self._items.get()


class Answering:
    """One job under way. It is cancelled where the client leaves, or the time is up.

    async with Answering(engine, job, events, receive, seconds) as answering:
        async for token in answering: ...
        reply = answering.reply
    """

    def __init__(
        self, engine: Engine, job: Job, events: Events, receive: Receive, seconds: float
    ) -> None:
        self._engine = engine
        self._job = job
        self._events = events
        self._receive = receive
        self._seconds = seconds
        self._late = False
        self._done = False
        self._reply: Reply | None = None

    @property
    def reply(self) -> Reply:
        assert self._reply is not None, "read to its end first"
        return self._reply

    async def __aenter__(self) -> Answering:
        self._engine.submit(self._job)
        self._watch = asyncio.create_task(when_gone(self._receive, self._give_up))
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._time_is_up)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()
        self._timer.cancel()
        if not self._done:
            self._give_up()

    async def __aiter__(self) -> AsyncIterator[Token]:
        """Raises ApiError, and what the engine tells."""
        while True:
            event = await self._events.get()
            if isinstance(event, Token):
                yield event
                continue
            self._done = True
            if self._late:
                raise ApiError(
                    408,
                    f"The answer took longer than {self._seconds:g} s. Ask for fewer tokens.",
                    code="timeout",
                )
            if isinstance(event, BaseException):
                raise event
            if event.finish_reason == "cancelled":
                raise ApiError(503, "The answer was stopped.", code="cancelled")
            self._reply = event
            return

    def _time_is_up(self) -> None:
        self._late = True
        self._give_up()

    def _give_up(self) -> None:
        self._engine.cancel(self._job)

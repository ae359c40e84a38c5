"""`AsyncSession`: `Session` for asyncio, its work on one thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from edgevlm.adapters.choice import AdapterChoice, Name
from edgevlm.messages import Reply, Token
from edgevlm.session import Session
from edgevlm.stream import Stream

T = TypeVar("T")


class AsyncStream(AsyncIterator[Token]):
    """`Stream`, awaited. Cancelling the task that reads it cancels the answer."""

    def __init__(self, session: AsyncSession, stream: Stream) -> None:
        self._session = session
        self._stream = stream

    async def __anext__(self) -> Token:
        token = await self._session._run(lambda: next(self._stream, None))
        if token is None:
            raise StopAsyncIteration
        return token

    @property
    def reply(self) -> Reply:
        return self._stream.reply

    async def aclose(self) -> None:
        await self._session._run(self._stream.close)


class AsyncSession:
    """The names of `Session`, awaited. Loading happens on entry.

    async with AsyncSession() as session:
        reply = await session.ask("What is this?", images=["photo.jpg"])
        async for token in session.stream("And what colour is it?"):
            ...
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._make = lambda: Session(*args, **kwargs)
        self._session: Session | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgevlm")

    async def __aenter__(self) -> AsyncSession:
        loading = asyncio.get_running_loop().run_in_executor(self._worker, self._make)
        try:
            self._session = await loading
        except BaseException:
            self._worker.shutdown(wait=False)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def sync(self) -> Session:
        """The session beneath. Raises RuntimeError before `async with` has loaded it."""
        if self._session is None:
            raise RuntimeError("Use `async with AsyncSession(...) as session`.")
        return self._session

    async def ask(self, *args: Any, **kwargs: Any) -> Reply:
        """See `Session.ask`."""
        return await self._run(partial(self.sync.ask, *args, **kwargs))

    def stream(self, *args: Any, **kwargs: Any) -> AsyncStream:
        """See `Session.stream`."""
        return AsyncStream(self, self.sync.stream(*args, **kwargs))

    @property
    def adapters(self) -> dict[str, float]:
        """See `Session.adapters`."""
        return self.sync.adapters

    async def use_adapters(self, adapters: AdapterChoice) -> None:
        """See `Session.use_adapters`."""
        await self._run(partial(self.sync.use_adapters, adapters))

    @asynccontextmanager
    async def adapter(self, name: Name, scale: float | None = None) -> AsyncIterator[None]:
        """See `Session.adapter`."""
        with ExitStack() as block:
            await self._run(partial(block.enter_context, self.sync.adapter(name, scale)))
            yield

    def cancel(self) -> None:
        """See `Session.cancel`."""
        self.sync.cancel()

    def set_route(self, route: str) -> None:
        """See `Session.set_route`."""
        self.sync.set_route(route)

    async def reset(self) -> None:
        """See `Session.reset`."""
        await self._run(self.sync.reset)

    async def close(self) -> None:
        """Stop the answer under way and let the model go. Closing again does nothing."""
        session, self._session = self._session, None
        if session is not None:
            session.cancel()
            await asyncio.get_running_loop().run_in_executor(self._worker, session.close)
        self._worker.shutdown(wait=False)

    async def _run(self, call: Callable[[], T]) -> T:
        session = self.sync
        job = self._worker.submit(call)
        work = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # A call that still waits for the thread is taken back: what runs is another's answer.
            if not job.cancel():
                # Again and again: a call that has only begun makes its own flag a moment later.
                while not work.done():
                    session.cancel()
                    await asyncio.wait([work], timeout=0.1)
            raise

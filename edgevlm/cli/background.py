"""Reading an answer while Ctrl-C stays live: the work runs on a thread of its own.

Python runs a signal handler only between its own instructions, and a runtime may
compute for seconds inside one call.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from edgevlm.messages import Token
from edgevlm.session import Session
from edgevlm.stream import Stream

_POLL_S = 0.1  # Windows does not interrupt a wait without a timeout


def read(session: Session, stream: Stream) -> Iterator[Token]:
    """Yield the stream's tokens. Ctrl-C cancels the answer, and the stream then ends.

    A reader that leaves early cancels it as well: a process must not end while a runtime
    computes on another thread, or the runtime aborts it.
    """
    items: queue.SimpleQueue[Token | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for token in stream:
                items.put(token)
        except BaseException as error:
            items.put(error)
        else:
            items.put(None)

    thread = threading.Thread(target=work, name="edgevlm-answer", daemon=True)
    thread.start()
    try:
        yield from _until_done(session, items)
    finally:
        session.cancel()
        thread.join()


def _until_done(
    session: Session, items: queue.SimpleQueue[Token | BaseException | None]
) -> Iterator[Token]:
    while True:
        try:
            item = items.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        except KeyboardInterrupt:
            session.cancel()
            continue
        if isinstance(item, Token):
            yield item
        elif item is None:
            return
        else:
            raise item

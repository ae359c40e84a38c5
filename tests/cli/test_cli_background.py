"""Reading an answer on a thread of its own, which must not outlive its reader."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path

from edgevlm import Session
from edgevlm.cli.background import read
from edgevlm.messages import Reply, Token
from edgevlm.stream import Stream


def test_a_reader_that_leaves_ends_the_answer(smolvlm: Path) -> None:
    with Session(str(smolvlm)) as session:

        def until_cancelled() -> Generator[Token, None, Reply]:
            while not session._cancel.is_set:
                yield Token(0, "word ", 0.0)
            return session.ask("Talk.", max_tokens=1)

        answer = read(session, Stream(until_cancelled()))
        next(answer)
        answer.close()
        assert "edgevlm-answer" not in {thread.name for thread in threading.enumerate()}

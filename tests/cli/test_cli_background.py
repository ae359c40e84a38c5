"""Reading an answer on a thread of its own, which must not outlive its reader."""

from __future__ import annotations

import threading
from pathlib import Path

from edgevlm import Session
from edgevlm.cli.background import read


def test_a_reader_that_leaves_ends_the_answer(smolvlm: Path) -> None:
    with Session(str(smolvlm)) as session:
        stream = session.stream("Talk.", max_tokens=10**6, temperature=2.0, seed=1)
        answer = read(session, stream)
        next(answer)
        answer.close()
        assert "edgevlm-answer" not in {thread.name for thread in threading.enumerate()}
        assert stream.reply.finish_reason == "cancelled"

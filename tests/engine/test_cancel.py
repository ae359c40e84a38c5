from __future__ import annotations

import threading

import pytest

from edgevlm.engine.cancel import Cancel
from edgevlm.errors import Interrupted


def test_tells_those_inside_and_only_them() -> None:
    cancel, told = Cancel(), []
    with cancel.calling(lambda: told.append("left before")):
        pass
    with cancel.calling(lambda: told.append("inside")):
        cancel.set()
    assert told == ["inside"]


def test_tells_at_once_what_comes_late() -> None:
    cancel, told = Cancel(), []
    cancel.set()
    with cancel.calling(lambda: told.append("late")):
        assert told == ["late"]
    with pytest.raises(Interrupted):
        cancel.check()


def test_a_signal_handler_may_set_it_at_any_moment() -> None:
    cancel = Cancel()

    def interrupted() -> None:
        with cancel._lock:  # where the handler finds the thread
            cancel.set()

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert cancel.is_set

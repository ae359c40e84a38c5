from __future__ import annotations

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

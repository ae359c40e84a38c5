"""The queue that gives clients, not requests, their turns."""

from __future__ import annotations

import pytest

from edgevlm.serve.turns import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.get() for _ in range(len(queue))]


def test_clients_take_turns_whatever_each_has_sent() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.put(item[0], item)
    assert drained(queue) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_client_that_comes_back_is_behind_those_who_wait() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.put("a", "a1")
    queue.put("b", "b1")
    assert queue.get() == "a1"
    queue.put("a", "a2")
    queue.put("b", "b2")
    assert drained(queue) == ["b1", "a2", "b2"]


def test_it_is_bounded() -> None:
    queue: FairQueue[str] = FairQueue(2)
    queue.put("a", "a1")
    queue.put("b", "b1")
    assert queue.full
    with pytest.raises(ValueError, match="full"):
        queue.put("c", "c1")
    queue.get()
    queue.put("c", "c1")
    assert drained(queue) == ["b1", "c1"]
    with pytest.raises(LookupError):
        queue.get()


def test_what_is_taken_back_is_gone_and_leaves_room() -> None:
    queue: FairQueue[str] = FairQueue(2)
    queue.put("a", "a1")
    queue.put("a", "a2")
    assert queue.remove("a", "a1")
    assert not queue.remove("a", "a1")
    assert not queue.remove("b", "b1")
    queue.put("b", "b1")
    assert drained(queue) == ["a2", "b1"]

"""Whose turn it is: a bounded queue with one turn a client, not a request."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First in, first out for each client, and round robin among clients: one that sends fifty
    requests at once holds up nobody who sends one. Not safe for threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        return self._count >= self._size

    def put(self, client: Hashable, item: T) -> None:
        """Raises ValueError where it is full."""
        if self.full:
            raise ValueError("the queue is full")
        self._waiting.setdefault(client, deque()).append(item)
        self._count += 1

    def get(self) -> T:
        """The next one. Raises LookupError where there is none."""
        if not self._waiting:
            raise LookupError("the queue is empty")
        client, items = self._waiting.popitem(last=False)
        item = items.popleft()
        self._count -= 1
        if items:  # its next turn is behind all others'
            self._waiting[client] = items
        return item

    def remove(self, client: Hashable, item: T) -> bool:
        """Take back an item; False where it is no longer here."""
        items = self._waiting.get(client, deque())
        if item not in items:
            return False
        items.remove(item)
        self._count -= 1
        if not items:
            del self._waiting[client]
        return True

"""What `wire` raises beside the errors that a user sees: `call` makes one of them of it."""

from __future__ import annotations

from collections.abc import Mapping


class Rejected(Exception):
    """The provider answered with an error status. `message` is its own, without the key."""

    def __init__(self, status: int, headers: Mapping[str, str], message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.headers = headers
        self.message = message

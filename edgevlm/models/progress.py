"""What long work tells whoever waits for it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told by the store, shown by whoever passes it in. `total` and `n` are bytes."""

    def start(self, total: int, label: str) -> None:
        """Begin a measured piece of work; one before it that did not finish is over."""

    def advance(self, n: int) -> None:
        """So much more is done; a negative `n` takes back what must be done again."""

    def note(self, text: str) -> None:
        """Say one line."""

    def finish(self) -> None: ...


class Silent:
    """Shows nothing."""

    def start(self, total: int, label: str) -> None: ...

    def advance(self, n: int) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...

"""What a store tells whoever waits for it, kept for a test to look at."""

from __future__ import annotations


class Recorder:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0
        self.labels: list[str] = []
        self.notes: list[str] = []
        self.finished = 0

    def start(self, total: int, label: str) -> None:
        self.total, self.done = total, 0
        self.labels.append(label)

    def advance(self, n: int) -> None:
        self.done += n

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self) -> None:
        self.finished += 1

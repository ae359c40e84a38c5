"""From token ids to text a reader may see: whole characters, and no stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Releases text token by token, holding back a character until all its bytes are there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Text is decoded from `_start`, so that a token which joins the one before it
        # (a leading space that some tokenizers drop) reads as it will in the whole.
        self._start = 0
        self._released = 0

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        shown = self._decode(self._start, self._released)
        text = self._decode(self._start, len(self._ids))
        if text.endswith(_UNFINISHED):
            return ""
        self._start, self._released = self._released, len(self._ids)
        return text[len(shown) :]

    def flush(self) -> str:
        """Return what is still held, unfinished characters as U+FFFD."""
        shown = self._decode(self._start, self._released)
        text = self._decode(self._start, len(self._ids))
        self._start = self._released = len(self._ids)
        return text[len(shown) :]

    def _decode(self, start: int, end: int) -> str:
        return self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)


class StopFilter:
    """Passes text on, holding back what may turn out to be a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return (text to release, whether a stop string was met)."""
        if not self._stops:
            return text, False
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            released, self._held = self._held[: min(found)], ""
            return released, True
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        return released, False

    def flush(self) -> str:
        released, self._held = self._held, ""
        return released


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

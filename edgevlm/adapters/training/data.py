"""Conversations to learn from: a JSONL file, or a folder of pictures with captions.

A line is `{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}],
"images": ["path", ...]}`, or short `{"image": "path", "question": "...", "answer": "..."}`.
Pictures belong to the first question, unless a question has its own `"images"`; their paths
count from the file's folder. A folder has `NAME.txt` beside each `NAME.jpg`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import UsageError
from edgevlm.messages import DEFAULT_QUESTION, Role

PICTURES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_LONG = frozenset(("messages", "images"))
_SHORT = frozenset(("image", "question", "answer"))
_MESSAGE = frozenset(("role", "content", "images"))
_FORMS = 'A line is {"messages": [...], "images": [...]} or {"image", "question", "answer"}.'


@dataclass(frozen=True, slots=True)
class Said:
    """One message; `images` are the paths of the pictures that it shows."""

    role: Role
    text: str
    images: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that ends with an answer. `where` says where it was read."""

    where: str
    said: tuple[Said, ...]


def read_examples(data: Path, system: str | None = None) -> list[Example]:
    """All examples, `system` being the system prompt of those that bring none.

    Raises UsageError that names the line, or the picture, of what is wrong first.
    """
    if data.is_dir():
        examples = list(_captioned(data))
    elif data.is_file():
        examples = list(_lines(data))
    else:
        raise UsageError(
            f"There is no {data}.", hint="Give a JSONL file or a folder of pictures with captions."
        )
    if not examples:
        raise UsageError(f"{data} has nothing to learn from.", hint=_FORMS)
    if system is None:
        return examples
    return [_with_system(example, system) for example in examples]


def _with_system(example: Example, system: str) -> Example:
    if example.said[0].role == "system":
        return example
    return Example(example.where, (Said("system", system), *example.said))


def _captioned(folder: Path) -> Iterator[Example]:
    for picture in sorted(folder.rglob("*")):
        if picture.suffix.lower() not in PICTURES or not picture.is_file():
            continue
        caption = picture.with_suffix(".txt")
        line = _Line(str(picture))
        if not caption.is_file():
            raise line.wrong(f"has no caption {caption.name} beside it")
        try:
            text = caption.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise line.wrong(f"has a caption that can't be read: {error}") from error
        if not text:
            raise line.wrong("has an empty caption")
        asked = Said("user", DEFAULT_QUESTION, (picture,))
        yield Example(str(picture), (asked, Said("assistant", text)))


def _lines(path: Path) -> Iterator[Example]:
    with path.open("rb") as file:
        for number, content in enumerate(file, 1):
            line = _Line(f"{path.name}, line {number},", path.parent)
            try:
                text = content.decode("utf-8-sig").strip()
                raw = json.loads(text) if text else None
            except (ValueError, RecursionError) as error:
                raise line.wrong("is not JSON") from error
            if raw is not None:
                yield Example(f"{path.name}, line {number}", line.read(raw))


class _Line:
    """Reads one example; `where` begins the messages of errors."""

    def __init__(self, where: str, folder: Path | None = None) -> None:
        self._where = where
        self._folder = folder

    def wrong(self, what: str) -> UsageError:
        return UsageError(f"{self._where} {what}.", hint=_FORMS)

    def read(self, raw: Any) -> tuple[Said, ...]:
        if not isinstance(raw, dict):
            raise self.wrong("is no object")
        if "messages" in raw:
            self._known(raw, _LONG)
            return self._conversation(raw)
        self._known(raw, _SHORT)
        images = self._images([raw["image"]]) if raw.get("image") is not None else ()
        question = self._text(raw, "question") if "question" in raw else ""
        if not question and not images:
            raise self.wrong("asks nothing: it has neither a question nor an image")
        asked = Said("user", question or DEFAULT_QUESTION, images)
        return asked, Said("assistant", self._text(raw, "answer"))

    def _conversation(self, raw: dict[str, Any]) -> tuple[Said, ...]:
        messages = raw["messages"]
        if not isinstance(messages, list):
            raise self.wrong("has no list of messages")
        said = [self._message(message) for message in messages]
        turns = said[1:] if said and said[0].role == "system" else said
        wanted = ["user", "assistant"] * (len(turns) // 2)
        if not wanted or [message.role for message in turns] != wanted:
            raise self.wrong("must take turns, user and assistant, and end with the assistant")
        if "images" in raw:
            first = said.index(turns[0])
            if turns[0].images:
                raise self.wrong("has images twice for its first question")
            said[first] = Said("user", turns[0].text, self._images(raw["images"]))
        return tuple(said)

    def _message(self, raw: Any) -> Said:
        if not isinstance(raw, dict):
            raise self.wrong("has a message that is no object")
        self._known(raw, _MESSAGE)
        role = raw.get("role")
        if role not in ("system", "user", "assistant"):
            raise self.wrong(f"has a message of the role {str(role)[:40]!r}")
        images = self._images(raw.get("images", []))
        if images and role != "user":
            raise self.wrong(f"has images in a message of the {role}")
        return Said(role, self._text(raw, "content"), images)

    def _known(self, raw: dict[str, Any], known: frozenset[str]) -> None:
        if strange := sorted(raw.keys() - known):
            raise self.wrong(f"has the unknown {strange[0][:40]!r}")

    def _text(self, raw: dict[str, Any], key: str) -> str:
        text = raw.get(key)
        if not isinstance(text, str) or not text.strip():
            raise self.wrong(f"has no text as {key!r}")
        return text.strip()

    def _images(self, raw: Any) -> tuple[Path, ...]:
        if not isinstance(raw, list) or not all(isinstance(path, str) for path in raw):
            raise self.wrong("has images that are no list of paths")
        assert self._folder is not None
        paths = [self._folder / path for path in raw]
        for path, written in zip(paths, raw, strict=True):
            try:
                there = path.is_file()
            except (OSError, ValueError):  # too long, or not a path at all
                there = False
            if not there:
                raise self.wrong(f"shows {written[:200]!r}, and there is no such file")
        return tuple(paths)

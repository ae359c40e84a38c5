"""Pictures named inside a question: "what is in photo.jpg?"."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

_EXTENSION = re.compile(
    r"\.(?:jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?)(?!\.?[A-Za-z0-9_])", re.IGNORECASE
)
_URL = re.compile(r"https://[^\s\"'<>]+", re.IGNORECASE)
# Not `\s`: names of macOS screenshots hold a narrow no-break space.
_SPACES = " \t\r\n"
_OPENERS = "\"'([<"
_CLOSERS = {'"': '"', "'": "'", "(": ")", "[": "]", "<": ">"}
# A longer file name with unquoted spaces is not looked for.
_MOST_WORDS = 16

# After these words a sentence needs a noun where the path was.
_WANTS_NOUN = """
    about analyse analyze and as at between by caption classify compare describe do does explain
    for from has have identify in inside into is like name near of on or rate read see show shows
    summarise summarize than the to transcribe translate under versus vs with
"""
# After these it has one already.
_HAS_NOUN = """
    file here image it photo photograph pic picture scan screenshot that these this those
"""
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclass(frozen=True, slots=True)
class _Mention:
    start: int
    end: int
    source: str


def find_image_paths(prompt: str, *, shown_before: int = 0) -> tuple[str, list[str]]:
    """Split a question into its text and the pictures that it names.

    Counts as a picture: a path with the extension of one that exists as a file (plain,
    quoted, or with escaped spaces as terminals paste it), and an https URL that ends in
    such an extension. In the text a name is dropped, or becomes "the picture" where a
    sentence needs it; "the second picture" when there are several, counted after
    `shown_before` others.
    """
    mentions = _mentions(prompt)
    if not mentions:
        return prompt, []
    count = shown_before + len(mentions)
    text, done, after_noun = "", 0, False
    for position, mention in enumerate(mentions, shown_before):
        gap = prompt[done : mention.start]
        text, rest = _unwrapped(text + gap, prompt[mention.end :])
        done = len(prompt) - len(rest)
        in_list = after_noun and not gap.strip()
        after_noun = in_list or _needs_noun(text, rest)
        if after_noun:
            text = f"{text.rstrip(_SPACES)} and " if in_list else text
            text += _noun(position, count)
        elif not text.strip():
            text, done = "", len(prompt) - len(rest.lstrip(_SPACES + ",:"))
        elif not rest[:1].isalnum():
            text = text.rstrip(_SPACES)
    return (text + prompt[done:]).strip(), [mention.source for mention in mentions]


def missing_picture(text: str) -> str | None:
    """The first word of a question, its pictures taken out, that still looks like one's name."""
    for word in text.split():
        name = word.strip("\"'()[]<>,;:?!")
        end = _EXTENSION.search(name)
        if end and end.start() > 0 and end.end() == len(name):
            return name
    return None


def _noun(position: int, count: int) -> str:
    if count == 1:
        return "the picture"
    if position < len(_ORDINALS):
        return f"the {_ORDINALS[position]} picture"
    return f"picture {position + 1}"


def _mentions(prompt: str) -> list[_Mention]:
    found = list(_urls(prompt))
    taken = [range(mention.start, mention.end) for mention in found]
    begin = 0
    for extension in _EXTENSION.finditer(prompt):
        if any(extension.start() in span for span in taken):
            begin = extension.end()
            continue
        mention = _path_ending_at(prompt, begin, extension.end())
        if mention is not None:
            found.append(mention)
            begin = mention.end
    return sorted(found, key=lambda mention: mention.start)


def _urls(prompt: str) -> Iterator[_Mention]:
    for match in _URL.finditer(prompt):
        url = match[0].rstrip(".,;:!?)]")
        try:
            path = PurePosixPath(urlsplit(url).path)
        except ValueError:  # brackets that hold no address
            continue
        if _EXTENSION.fullmatch(path.suffix):
            yield _Mention(match.start(), match.start() + len(url), url)


def _path_ending_at(prompt: str, begin: int, end: int) -> _Mention | None:
    """The longest file name in `prompt[begin:end]` that ends at `end` and exists."""
    line = max(begin, prompt.rfind("\n", begin, end) + 1)
    starts = [i for i in range(line, end) if _starts_word(prompt, i, begin)]
    for start in starts[-_MOST_WORDS:]:
        quote = prompt[start]
        quoted = quote in "\"'" and prompt[end : end + 1] == quote
        written = prompt[start : end + 1] if quoted else prompt[start:end]
        for name in _readings(written):
            if _is_file(name):
                return _Mention(start, end + quoted, name)
    return None


def _starts_word(prompt: str, i: int, begin: int) -> bool:
    if prompt[i] in _SPACES:
        return False
    return i == begin or prompt[i - 1] in _SPACES or prompt[i - 1] in _OPENERS


def _readings(written: str) -> Iterator[str]:
    """The name as it stands, and as a shell would read it."""
    yield written
    try:
        words = shlex.split(written)
    except ValueError:  # an open quote
        return
    if len(words) == 1:
        yield words[0]


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _unwrapped(before: str, after: str) -> tuple[str, str]:
    """Both sides of a name without the brackets or quotes that held it."""
    closer = _CLOSERS.get(before[-1:])
    if closer is not None and after.startswith(closer):
        return before[:-1], after[1:]
    return before, after


def _needs_noun(before: str, after: str) -> bool:
    last = before.split()[-1].lower().strip("\"'([") if before.split() else ""
    if not last or last[-1] in ".?!:;":
        # "a.jpg and b.jpg: which is older?" speaks of it, "a.jpg what is it?" only shows it.
        return after.split(maxsplit=1)[:1] in (["and"], ["or"], ["vs"], ["shows"])
    if last in _WANTS_NOUN.split() or last[-1] == ",":
        return True
    followed = after[:1] in _SPACES and after.lstrip(_SPACES)[:1].isalnum()
    return followed and last not in _HAS_NOUN.split()

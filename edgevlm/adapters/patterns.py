"""Regular expressions that came with a file, matched in bounded time.

PEFT names modules by regular expressions. Python's `re` tries one way through a pattern after
the other, so that twenty characters from a stranger can keep it busy for years. Here all ways
are followed at once (Thompson 1968, Communications of the ACM 11/6): a number holds one bit for
every position of the text that some way has come to, and each piece of the pattern moves them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

# A list of all modules of a decoder with 30 layers, written as one pattern, has 9000 characters.
LONGEST = 16_384
_DEEPEST = 40
# That list takes some 5000 moves for a name, a hundred alternatives that begin with `.*` some
# 1000, and an adapter of the largest models has about 1000 names. A million moves take 0.4 s.
_MOST_MOVES = 2_000_000

_TOKEN = re.compile(
    r"""
    \((?:\?(?::|<?[=!]|P<\w+>))?                   # the kinds of groups
    | [)|^$]
    | (?:[*+?]|\{\d{1,4}(?:,\d{0,4})?\}|\{,\d{1,4}\})\??  # repeats, greedy or not
    | \[\^?\]?(?:\\.|(?!--)[^\]\\\[&~|])*\]        # a set of characters
    | \\.
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_REPEAT = re.compile(r"[*+?]\??|\{\d*,?\d*\}\??")


class Effort:
    """How many moves the patterns of one file may still take, all matches together."""

    def __init__(self, moves: int = _MOST_MOVES) -> None:
        self._left = moves

    def spend(self, moves: int = 1) -> None:
        """Raises ValueError where nothing is left."""
        self._left -= moves
        if self._left < 0:
            raise ValueError("it takes too long to match")


class Pattern:
    """A regular expression with the meaning that `re` gives it.

    Raises ValueError for one that is malformed, too long, or has pieces other than characters,
    sets, groups, alternatives, repeats, `^`, `$`, `\\b` and looking ahead or behind.
    """

    def __init__(self, pattern: str, effort: Effort | None = None) -> None:
        self._effort = effort or Effort()
        if len(pattern) > LONGEST:
            raise ValueError(f"it is longer than {LONGEST} characters")
        self._piece = _Parser(_TOKEN.findall(pattern)).parse()

    def fullmatch(self, text: str) -> bool:
        """Whether it matches the whole text. Raises ValueError where that takes too long."""
        subject = _Subject(text, self._effort)
        return bool(self._piece(subject, 1) >> len(text) & 1)


class _Subject:
    """A text, and the positions at which each of its characters stands."""

    def __init__(self, text: str, effort: Effort) -> None:
        self.text = text
        self.spend = effort.spend
        self.positions: dict[str, int] = {}
        for index, character in enumerate(text):
            self.positions[character] = self.positions.get(character, 0) | 1 << index
        self._of_set: dict[str, int] = {}
        words = self.of_set(_Set(r"\w"))
        self.boundaries = words ^ words << 1

    def of_set(self, characters: _Set) -> int:
        """The positions at which one of a set stands, found once for every way to write it."""
        found = self._of_set.get(characters.written)
        if found is None:
            self.spend(len(self.positions))
            found = sum(at for c, at in self.positions.items() if characters.takes(c))
            self._of_set[characters.written] = found
        return found


# From the positions come to before a piece, to those after it.
_Piece: TypeAlias = Callable[[_Subject, int], int]


class _Parser:
    """Recursive descent over the tokens of one pattern."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def parse(self) -> _Piece:
        piece = self._alternatives()
        if self._next < len(self._tokens):
            raise ValueError("it closes a group that it does not open")
        return piece

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1]

    def _alternatives(self) -> _Piece:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._take()
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _any_of(branches)

    def _sequence(self) -> _Piece:
        pieces = []
        while self._peek() not in ("", "|", ")"):
            piece = self._piece(self._take())
            if _REPEAT.fullmatch(self._peek()):
                piece = _repeated(piece, *_bounds(self._take()))
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else _one_by_one(pieces)

    def _piece(self, part: str) -> _Piece:
        if part.startswith("("):
            return self._group(part)
        if part == "^" or part == r"\A":
            return lambda subject, at: at & 1
        if part == "$" or part == r"\Z":
            return lambda subject, at: at & 1 << len(subject.text)
        if part == r"\b":
            return lambda subject, at: at & subject.boundaries
        return _character(part)

    def _group(self, part: str) -> _Piece:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError(f"its groups are nested more than {_DEEPEST} deep")
        piece = self._alternatives()
        if self._peek() != ")":
            raise ValueError("it opens a group that it does not close")
        self._take()
        self._depth -= 1
        if part in ("(?=", "(?!"):
            return _ahead(piece, part == "(?=")
        if part in ("(?<=", "(?<!"):
            return _behind(piece, part == "(?<=")
        return piece


def _bounds(repeat: str) -> tuple[int, int | None]:
    repeat = repeat[:-1] if len(repeat) > 1 and repeat.endswith("?") else repeat
    if repeat in "*+?":
        return (1 if repeat == "+" else 0), (1 if repeat == "?" else None)
    least, comma, most = repeat[1:-1].partition(",")
    upper = most if comma else least
    return int(least or 0), int(upper) if upper else None


def _character(part: str) -> _Piece:
    if len(part) == 1 and part not in "[\\*+?.":
        return lambda subject, at: (at & subject.positions.get(part, 0)) << 1
    escape = part[1:] if part.startswith("\\") else ""
    if part in ("[", "\\") or _REPEAT.fullmatch(part):
        raise ValueError(f"{part!r} stands where nothing can be made of it")
    if escape.isdigit() or (escape.isalpha() and escape not in "dDwWsSntr"):
        raise ValueError(f"it has {part}, which is not supported")
    return _Set(part)


class _Set:
    """One character of several, `written` as `.`, `\\w` or `[a-z]`."""

    def __init__(self, written: str) -> None:
        self.written = written
        try:
            self._one = re.compile(written)
        except re.error as error:
            raise ValueError(str(error)) from error

    def takes(self, character: str) -> bool:
        return self._one.fullmatch(character) is not None

    def __call__(self, subject: _Subject, at: int) -> int:
        subject.spend()
        return (at & subject.of_set(self)) << 1

    def any_number(self, subject: _Subject, at: int) -> int:
        """Through runs of the set, all at once: added to a run, a bit is carried to its end
        (Cameron et al. 2014, "Bitwise data parallelism in regular expression matching")."""
        subject.spend()
        run = subject.of_set(self)
        return (((at & run) + run) ^ run) | at


def _one_by_one(pieces: list[_Piece]) -> _Piece:
    def move(subject: _Subject, at: int) -> int:
        for piece in pieces:
            if not at:
                break
            subject.spend()
            at = piece(subject, at)
        return at

    return move


def _any_of(branches: list[_Piece]) -> _Piece:
    def move(subject: _Subject, at: int) -> int:
        reached = 0
        for branch in branches:
            subject.spend()
            reached |= branch(subject, at)
        return reached

    return move


def _repeated(piece: _Piece, least: int, most: int | None) -> _Piece:
    if most is not None and most < least:
        raise ValueError("a repeat has its bounds the wrong way round")

    def move(subject: _Subject, at: int) -> int:
        # After as many rounds as there are positions, a further one changes nothing.
        rounds = len(subject.text) + 1
        for _ in range(min(least, rounds)):
            subject.spend()
            at = piece(subject, at)
        if most is None and isinstance(piece, _Set):
            return piece.any_number(subject, at)
        reached = at
        for _ in range(min(most - least, rounds) if most is not None else rounds):
            subject.spend()
            at = piece(subject, at) & ~reached
            if not at:
                break
            reached |= at
        return reached

    return move


def _ahead(piece: _Piece, wanted: bool) -> _Piece:
    def move(subject: _Subject, at: int) -> int:
        kept = 0
        for index in range(len(subject.text) + 1):
            subject.spend()
            if at >> index & 1 and bool(piece(subject, 1 << index)) is wanted:
                kept |= 1 << index
        return kept

    return move


def _behind(piece: _Piece, wanted: bool) -> _Piece:
    def move(subject: _Subject, at: int) -> int:
        subject.spend()
        ends = piece(subject, (2 << len(subject.text)) - 1)
        return at & ends if wanted else at & ~ends

    return move

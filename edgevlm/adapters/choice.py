"""Which adapters a caller wants, in every form that the API and the command line take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from edgevlm.adapters.manifest import LARGEST_SCALE
from edgevlm.errors import UsageError

Name: TypeAlias = "str | os.PathLike[str]"
# One, several, with their scales, or none.
AdapterChoice: TypeAlias = "Name | Iterable[Name] | Mapping[Name, float | None] | None"
# What is on by name or folder, in the order given; None is the adapter's own scale.
Wanted: TypeAlias = dict[str, float | None]

_FORMS = "Give NAME, NAME:SCALE, a list of these, or {name: scale}."


def read_choice(choice: AdapterChoice) -> Wanted:
    """Read any form of a choice.

    `NAME:SCALE` is read in a str that is no key of a mapping; a Path is a folder. Raises
    UsageError for a scale that is no number or beyond `LARGEST_SCALE`, what is no name, and
    a name given twice.
    """
    if choice is None:
        return {}
    if isinstance(choice, Mapping):
        pairs = [(read_name(name), scale) for name, scale in choice.items()]
    elif isinstance(choice, (str, bytes, os.PathLike)) or not isinstance(choice, Iterable):
        pairs = [_name_and_scale(choice)]
    else:
        pairs = [_name_and_scale(name) for name in choice]
    read: Wanted = {}
    for name, scale in pairs:
        if name in read:
            raise UsageError(f"Adapter {name} is given twice.", hint="Give it once, with a scale.")
        read[name] = None if scale is None else check_scale(name, scale)
    return read


def check_scale(name: str, scale: Any) -> float:
    """The factor of an adapter's update: 1.0 is as it was trained, below 0 its opposite.

    Raises UsageError unless it is a number from -`LARGEST_SCALE` to that.
    """
    is_number = isinstance(scale, Real) and not isinstance(scale, bool)
    if not is_number or not -LARGEST_SCALE <= scale <= LARGEST_SCALE:  # not a number is neither
        raise UsageError(
            f"The scale of adapter {name} can't be {scale!r}.",
            hint=f"Use a number from {-LARGEST_SCALE:g} to {LARGEST_SCALE:g}; 1 is as trained.",
        )
    return float(scale)


def _name_and_scale(name: Any) -> tuple[str, Any]:
    if not isinstance(name, str):
        return read_name(name), None
    before, colon, scale = name.rpartition(":")
    if not colon or "/" in scale or "\\" in scale:  # a colon inside a path
        return read_name(name), None
    try:
        return read_name(before), float(scale)
    except ValueError:
        return read_name(before), scale  # which is refused with the name in the message


def read_name(name: Any) -> str:
    """The text of a name or folder. Raises UsageError."""
    # Made absolute, as a bare word may be an adapter's name as well.
    text = str(Path(name).absolute()) if isinstance(name, os.PathLike) else name
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"An adapter can't be {name!r}.", hint=_FORMS)
    return text.strip()

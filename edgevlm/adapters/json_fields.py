"""The JSON objects of an adapter, from strangers: read within bounds, one field at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm.errors import AdapterCorrupt

FETCH_AGAIN = "Install the adapter again, or ask whoever made it for a whole copy."


class JsonFields:
    """One object of a file. What is wrong with a field raises AdapterCorrupt with its name."""

    def __init__(self, where: str, fields: Mapping[str, Any]) -> None:
        self.where = where
        self.fields = fields

    @classmethod
    def read(cls, path: Path, most_bytes: int) -> JsonFields:
        """Read a file that holds one object. Raises AdapterCorrupt."""
        try:
            # A pipe would be waited for, and a device has no end.
            if not path.is_file():
                raise corrupt(f"{path.parent} has no file {path.name}")
            with path.open("rb") as file:
                content = file.read(most_bytes + 1)
            if len(content) > most_bytes:
                raise corrupt(f"{path.name} is larger than {most_bytes} bytes")
            fields = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
        except (OSError, ValueError, RecursionError) as error:
            raise corrupt(f"{path.name} can't be read: {_first_line(error)}") from error
        if not isinstance(fields, dict):
            raise corrupt(f"{path.name} is not a JSON object")
        return cls(path.name, fields)

    def corrupt(self, what: str) -> AdapterCorrupt:
        return corrupt(f"{self.where} {what}")

    def require(self, known: frozenset[str]) -> None:
        """Raise AdapterCorrupt for a field that is none of these."""
        if strange := sorted(self.fields.keys() - known):
            raise self.corrupt(f"has the unknown field {shown(strange[0])}")

    def text(self, field: str, most: int, *, lines: bool = False) -> str:
        """A string of 1 to `most` printable characters; `lines` allows line breaks and tabs."""
        value = self.fields.get(field)
        if not isinstance(value, str) or not 1 <= len(value) <= most:
            raise self.corrupt(f"needs a text of 1 to {most} characters as {field!r}")
        # What a terminal would act on, or show in another order, is in none of our texts.
        plain = value.translate({ord(c): " " for c in "\n\t"}) if lines else value
        if not plain.isprintable():
            raise self.corrupt(f"has a character in {field!r} that can't be printed")
        return value

    def whole(self, field: str, least: int, most: int) -> int:
        return self.as_whole(field, self.fields.get(field), least, most)

    def as_whole(self, field: str, value: object, least: int, most: int) -> int:
        if type(value) is not int or not least <= value <= most:
            needed = f"a whole number from {least} to {most}"
            raise self.corrupt(f"needs {needed} as {field!r}, not {shown(value)}")
        return value

    def number(self, field: str, largest: float) -> float:
        return self.as_number(field, self.fields.get(field), largest)

    def as_number(self, field: str, value: object, largest: float) -> float:
        """A finite number of at most that size."""
        # Whole numbers of JSON have any length, and are compared before they become a float.
        good = type(value) in (int, float) and -largest <= value <= largest  # type: ignore[operator]
        if not good or not math.isfinite(value):  # type: ignore[arg-type]
            raise self.corrupt(f"needs a number as {field!r}, not {shown(value)}")
        return float(value)  # type: ignore[arg-type]

    def flag(self, field: str) -> bool:
        """True or false; false where it is missing or null."""
        value = self.fields.get(field)
        if value is not None and not isinstance(value, bool):
            raise self.corrupt(f"needs true or false as {field!r}, not {shown(value)}")
        return bool(value)

    def mapping(self, field: str, most: int) -> dict[str, Any]:
        """An object of at most so many entries; empty where it is missing or null."""
        value = self.fields.get(field)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > most:
            raise self.corrupt(f"needs an object of at most {most} entries as {field!r}")
        return value

    def objects(self, field: str, most: int) -> list[JsonFields]:
        """A list of at most so many objects."""
        value = self.fields.get(field)
        good = isinstance(value, list) and len(value) <= most
        if not good or not all(isinstance(item, dict) for item in value):  # type: ignore[union-attr]
            raise self.corrupt(f"needs a list of at most {most} objects as {field!r}")
        return [JsonFields(f"{self.where}, {field}", item) for item in value or []]


def corrupt(what: str) -> AdapterCorrupt:
    return AdapterCorrupt(f"{what}.", hint=FETCH_AGAIN)


def shown(value: object) -> str:
    """A stranger's value as a message can carry it."""
    text = ascii(value) if not isinstance(value, int) or abs(value) < 2**64 else "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")

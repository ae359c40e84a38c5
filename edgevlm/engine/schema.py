"""What shape an answer must have, and how its text becomes a value of that shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgevlm.errors import NotSupported, UsageError

_MAX_CHARACTERS = 128 * 1024
_COMBINED = {"$ref", "anyOf", "oneOf", "patternProperties", "unevaluatedProperties"}
_VALUES = {"const", "default", "enum", "examples"}
_NAMED = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
_TOO_LARGE = 2**63
_HINT = "Give a JSON Schema (a dict or its JSON text), or a class that pydantic knows."


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON Schema as text, and what reads a finished answer.

    Objects get the keys that it names and no others, unless it says `additionalProperties`.
    """

    text: str
    read: Callable[[str], Any]

    @classmethod
    def of(cls, given: Any) -> Schema:
        """Read a JSON Schema (dict or text), or a type, dataclass or model that pydantic knows.

        Raises UsageError, and NotSupported for a class where pydantic isn't installed.
        """
        if isinstance(given, str):
            return cls(_text_of(_parsed(given)), json.loads)
        if isinstance(given, Mapping):
            return cls(_text_of(given), json.loads)
        return _of_class(given)

    def parse(self, text: str) -> Any:
        """The answer's value, or None where the class's own validators refuse it."""
        try:
            return self.read(text)
        except (ValueError, RecursionError):
            return None


def _parsed(text: str) -> dict[str, Any]:
    if len(text) > _MAX_CHARACTERS:
        raise _too_long(len(text))
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The schema is not JSON: {error}.", hint=_HINT) from error
    if not isinstance(schema, dict):
        raise UsageError("The schema is not a JSON object.", hint=_HINT)
    return schema


def _text_of(schema: Mapping[str, Any]) -> str:
    try:
        _check_numbers(schema)
        text = json.dumps(_closed(dict(schema)), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The schema can't be written as JSON: {error}.", hint=_HINT) from error
    if len(text) > _MAX_CHARACTERS:
        raise _too_long(len(text))
    return text


def _check_numbers(node: Any) -> None:
    """llguidance 1.9 counts in 64 bits: -2^63, and what it cuts to that, overflows its stack."""
    if isinstance(node, (list, tuple)):
        for item in node:
            _check_numbers(item)
    elif isinstance(node, Mapping):
        _check_numbers(list(node.values()))
    elif isinstance(node, (int, float)) and abs(node) >= _TOO_LARGE:
        raise UsageError("A number of the schema is beyond 64 bits.", hint="Use a smaller one.")


def _too_long(characters: int) -> UsageError:
    return UsageError(
        f"The schema has {characters} characters, more than {_MAX_CHARACTERS}.",
        hint="Ask for less at a time.",
    )


def _of_class(given: Any) -> Schema:
    try:
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError
    except ImportError as error:
        raise NotSupported(
            f"A schema that is a {type(given).__name__} needs pydantic.",
            hint="Run: pip install pydantic, or give a JSON Schema.",
        ) from error
    try:
        adapter = given if isinstance(given, TypeAdapter) else TypeAdapter(given)
        schema = adapter.json_schema()
    except (PydanticUserError, NameError, RecursionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"pydantic makes no schema of {given!r}: {reason}.", hint=_HINT) from error
    return Schema(_text_of(schema), adapter.validate_json)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with objects of the keys it names and no others, where it leaves that open:
    a model that may go on with keys of its own seldom stops. What fits still fits the whole."""
    closed: dict[str, Any] = schema if _adds_up(schema) else _close(schema)
    return closed


def _adds_up(node: Any) -> bool:
    """Whether parts make up one object, which must stay open for one another's keys."""
    if isinstance(node, list):
        return any(map(_adds_up, node))
    if not isinstance(node, dict):
        return False
    combined = "properties" in node and not _COMBINED.isdisjoint(node)
    return "allOf" in node or combined or any(map(_adds_up, node.values()))


def _close(node: Any) -> Any:
    if isinstance(node, list):
        return [_close(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _close_under(key, value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict):
        closed.setdefault("type", "object")
        closed.setdefault("additionalProperties", False)
    return closed


def _close_under(key: str, value: Any) -> Any:
    """What stands under a keyword: a value, schemas by names of the user's own, or schemas."""
    if key in _VALUES:
        return value
    if key in _NAMED and isinstance(value, dict):
        return {name: _close(schema) for name, schema in value.items()}
    return _close(value)

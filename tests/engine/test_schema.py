"""What may be given as a schema, and what is made of an answer's text."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, field_validator

from edgevlm.engine.grammar import check_schema
from edgevlm.engine.schema import Schema
from edgevlm.errors import UsageError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    colour: Colour


class Scene(BaseModel):
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]]


@dataclass
class Point:
    x: int
    y: int


class Open(BaseModel, extra="allow"):
    x: int


class Even(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("odd")
        return n


@pytest.mark.parametrize("given", [{"type": "integer"}, '{"type": "integer"}'])
def test_a_json_schema_gives_plain_values(given: object) -> None:
    schema = Schema.of(given)
    assert json.loads(schema.text) == {"type": "integer"}
    assert schema.parse("12") == 12


@pytest.mark.parametrize(
    ("given", "text", "value"),
    [
        (Cat, '{"kind":"cat","lives":9}', Cat(kind="cat", lives=9)),
        (TypeAdapter(Cat), '{"kind":"cat","lives":9}', Cat(kind="cat", lives=9)),
        (
            Scene,
            '{"pets":[{"kind":"dog","colour":"red"}]}',
            Scene(pets=[Dog(kind="dog", colour=Colour.RED)]),
        ),
        (list[Cat], '[{"kind":"cat","lives":1}]', [Cat(kind="cat", lives=1)]),
        (Point, '{"x":1,"y":2}', Point(1, 2)),
        (Colour, '"blue"', Colour.BLUE),
        (tuple[int, str], '[1,"a"]', (1, "a")),
        (bool | None, "null", None),
    ],
)
def test_a_class_gives_its_instances(given: object, text: str, value: object) -> None:
    assert Schema.of(given).parse(text) == value


def objects_in(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [found for item in node for found in objects_in(item)]
    if not isinstance(node, dict):
        return []
    inner = [found for value in node.values() for found in objects_in(value)]
    return [node, *inner] if node.get("type") == "object" else inner


def test_objects_have_no_keys_but_those_named() -> None:
    found = objects_in(json.loads(Schema.of(Scene).text))
    assert len(found) == 3
    assert all(node["additionalProperties"] is False for node in found)
    [free] = objects_in(json.loads(Schema.of(Open).text))
    assert free["additionalProperties"] is True


def test_what_names_properties_is_an_object() -> None:
    schema = json.loads(Schema.of({"properties": {"a": {"type": "null"}}}).text)
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}, {"required": ["c"]}]},
        {"properties": {"a": {}}, "$ref": "#/$defs/x", "$defs": {"x": {"properties": {"b": {}}}}},
        {"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"properties": {"b": {}}}}},
        {"const": {"properties": {"a": 1}}},
        {"enum": [{"properties": {"a": 1}}]},
    ],
)
def test_what_adds_up_stays_open_and_values_stay_values(schema: dict[str, Any]) -> None:
    assert json.loads(Schema.of(schema).text) == schema


def test_what_a_class_refuses_is_no_value() -> None:
    assert Schema.of(Even).parse('{"n": 2}') == Even(n=2)
    assert Schema.of(Even).parse('{"n": 3}') is None


def test_an_answer_nested_too_deep_is_no_value() -> None:
    assert Schema.of({}).parse("[" * 100_000 + "]" * 100_000) is None


def circular() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"self": schema}
    return schema


@pytest.mark.parametrize(
    "given",
    [
        "{",
        "[]",
        "true",
        "[" * 100_000,
        {"enum": [object()]},
        {"maximum": float("nan")},
        circular(),
        {"type": "integer", "const": -(2**63)},
        '{"properties": {"a": {"enum": [1, -1e308]}}}',
        {"maximum": 10**400},
        {"enum": ["x" * 200_000]},
        '{"a": "' + "x" * 200_000 + '"}',
        object(),
        5,
        Schema,
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_schema(given: object) -> None:
    with pytest.raises(UsageError):
        Schema.of(given)


@pytest.mark.parametrize("name", ["properties", "enum", "default", "$defs", "items", "type"])
@pytest.mark.parametrize("under", ["properties", "$defs"])
def test_keys_may_be_called_like_keywords(under: str, name: str) -> None:
    inner = {"type": "object", "properties": {"a": {"type": "string"}}}
    given = {"type": "object", "properties": {"x": {"type": "string"}}}
    text = Schema.of(given | {under: {name: inner}}).text
    closed = {**inner, "additionalProperties": False}
    assert json.loads(text)[under] == {name: closed}
    check_schema(text)

"""The JSON files of a model folder, read with an error that names the file and the field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgevlm.errors import ModelCorrupt

FETCH_AGAIN = "Fetch the model again, or check that the folder is complete."
_LARGEST = 1e6
_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class ConfigFile:
    """One JSON object of a file, or one nested in it. Fields raise ModelCorrupt."""

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.fields = fields

    @classmethod
    def read(cls, folder: Path, name: str) -> ConfigFile:
        """Read `folder/name`. Raises ModelCorrupt where it is missing or no JSON object."""
        return cls(name, _read_object(folder / name))

    @classmethod
    def read_if_there(cls, folder: Path, name: str) -> ConfigFile:
        """Like `read`, but without the file all fields are missing."""
        return cls(name, _read_object(folder / name) if (folder / name).is_file() else {})

    def nested(self, field: str) -> ConfigFile:
        value = self.fields.get(field)
        if not isinstance(value, dict):
            raise self.corrupt(f"has no object {field!r}")
        return ConfigFile(self.name, value)

    def positive(self, field: str) -> int:
        value = self.fields.get(field)
        if type(value) is not int or value < 1:
            raise self.corrupt(f"needs a positive whole number {field!r}, not {value!r}")
        return value

    def flag(self, field: str, default: bool) -> bool:
        value = self.fields.get(field, default)
        if not isinstance(value, bool):
            raise self.corrupt(f"needs true or false as {field!r}, not {value!r}")
        return value

    def numbers(self, field: str, count: int, default: float) -> tuple[float, ...]:
        """`count` finite numbers; one number stands for all of them."""
        value = self.fields.get(field, default)
        values = [value] * count if not isinstance(value, list) else value
        if len(values) != count or not all(map(_is_number, values)):
            raise self.corrupt(f"needs {count} numbers as {field!r}, not {value!r}")
        return tuple(map(float, values))

    def corrupt(self, what: str) -> ModelCorrupt:
        return ModelCorrupt(f"{self.name} {what}.", hint=FETCH_AGAIN)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json`. Raises ModelCorrupt."""
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelCorrupt(f"The model has no {path.name}.", hint=FETCH_AGAIN) from error
    except Exception as error:  # tokenizers raises a bare Exception
        raise ModelCorrupt(f"{path.name} can't be read: {error}.", hint=FETCH_AGAIN) from error


def read_chat_template(folder: Path) -> str:
    """Look where transformers looks: the file of its own first, the tokenizer's last.

    Raises ModelCorrupt.
    """
    own = folder / "chat_template.jinja"
    if own.is_file():
        try:
            return own.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelCorrupt(f"{own.name} can't be read: {error}.", hint=FETCH_AGAIN) from error
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = ConfigFile.read_if_there(folder, name).fields.get("chat_template")
        if isinstance(template, list):
            named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
            template = named[0].get("template") if named else None
        if isinstance(template, str):
            return template
    raise ModelCorrupt("The model has no chat template (chat_template.jinja).", hint=FETCH_AGAIN)


def special_tokens(folder: Path) -> dict[str, str]:
    """`bos_token` and its like, each a string or an object with `content`."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        fields = ConfigFile.read_if_there(folder, name).fields
        for key in _SPECIAL_NAMES:
            value: Any = fields.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                found[key] = value
    return found


def stop_ids(folder: Path, tokenizer: Tokenizer, names: Sequence[str] = ()) -> frozenset[int]:
    """What ends an answer: as generation_config.json says, the end of text, and those of
    `names` that the tokenizer knows. Raises ModelCorrupt where there is nothing."""
    generation = ConfigFile.read_if_there(folder, "generation_config.json")
    declared = generation.fields.get("eos_token_id")
    listed = declared if isinstance(declared, list) else [declared]
    named = [*names, *filter(None, [special_tokens(folder).get("eos_token")])]
    ids = {i for i in (*listed, *map(tokenizer.token_to_id, named)) if i is not None}
    if not ids or not all(type(i) is int for i in ids):
        raise generation.corrupt("names no token that ends an answer")
    return frozenset(ids)


def _is_number(value: object) -> bool:
    # JSON as Python reads it knows NaN and Infinity, and whole numbers of any length.
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelCorrupt(f"The model has no {path.name}.", hint=FETCH_AGAIN) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{path.name} can't be read: {error}.", hint=FETCH_AGAIN) from error
    if not isinstance(content, dict):
        raise ModelCorrupt(f"{path.name} is not a JSON object.", hint=FETCH_AGAIN)
    return content

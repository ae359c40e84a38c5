"""The JSON files of a model folder, read with an error that names the file and the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm.errors import ModelCorrupt

_HINT = "Fetch the model again, or check that the folder is complete."


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
        """`count` numbers; one number stands for all of them."""
        value = self.fields.get(field, default)
        values = [value] * count if not isinstance(value, list) else value
        if len(values) != count or not all(type(v) in (int, float) for v in values):
            raise self.corrupt(f"needs {count} numbers as {field!r}, not {value!r}")
        return tuple(map(float, values))

    def corrupt(self, what: str) -> ModelCorrupt:
        return ModelCorrupt(f"{self.name} {what}.", hint=_HINT)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelCorrupt(f"The model has no {path.name}.", hint=_HINT) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{path.name} can't be read: {error}.", hint=_HINT) from error
    if not isinstance(content, dict):
        raise ModelCorrupt(f"{path.name} is not a JSON object.", hint=_HINT)
    return content

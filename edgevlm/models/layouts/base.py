"""What a layout says of a folder, and what all of them share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from edgevlm.errors import ModelCorrupt

ModelPart: TypeAlias = Literal["vision", "language"]


@dataclass(frozen=True, slots=True)
class Layout:
    """`roles` maps a role to a path; `paths` are all files that belong to the model."""

    roles: Mapping[str, str]
    paths: tuple[str, ...]
    quantization: Mapping[str, str]


class FindParts(Protocol):
    """`find` of each module here: where the asked parts lie among relative `paths`.

    Raises ModelCorrupt naming what is missing; `what` is how the message calls the folder.
    """

    def __call__(self, paths: Collection[str], parts: Sequence[ModelPart], what: str) -> Layout: ...


def configuration(paths: Collection[str]) -> list[str]:
    """The JSON and Jinja files at the top, which describe a model for every runtime."""
    return sorted(path for path in paths if _is_configuration(path))


def _is_configuration(path: str) -> bool:
    return (
        "/" not in path
        and path.endswith((".json", ".jinja"))
        and not path.endswith(".index.json")
        and path not in ("manifest.json", "vocab.json")
    )


def missing(name: str, what: str, hint: str) -> ModelCorrupt:
    return ModelCorrupt(f"{what} has no {name}.", hint=hint)

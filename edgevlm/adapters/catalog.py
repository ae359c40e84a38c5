"""What an adapter's name may mean: a pack that ships, an installed one, the hub's, a folder.

The catalog is the folders of `adapters/` that ship: their names are the names of the packs.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgevlm.adapters.manifest import MANIFEST_NAME
from edgevlm.errors import UnknownAdapter
from edgevlm.models.names import HubId, check_name, local_folder


@dataclass(frozen=True, slots=True)
class Named:
    """`NAME[@VERSION]`: a pack that ships, or what is installed by that name."""

    name: str
    version: str | None = None

    @property
    def key(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


Target: TypeAlias = Named | HubId | Path


def packs_folder() -> Path:
    """In an installed package `edgevlm/data/adapters`, in the repository its top folder."""
    package = Path(__file__).parent.parent
    shipped = package / "data" / "adapters"
    return shipped if shipped.is_dir() else package.parent / "adapters"


def packs() -> Mapping[str, Path]:
    """The packs that ship, name to folder."""
    found = sorted(packs_folder().glob(f"*/{MANIFEST_NAME}"))
    return {manifest.parent.name: manifest.parent for manifest in found}


def find_target(name: str, installed: Collection[str]) -> Target:
    """Tell packs and `installed` names, folders and hub ids apart, in this order.

    A `Named` is a name that could be, not one that is. Raises UnknownAdapter.
    """
    plain, _, version = name.partition("@")
    named = Named(plain, version or None)
    if plain in packs() or {plain, name} & {*installed}:
        return HubId.parse(name) or named
    folder = local_folder(name, "an adapter", UnknownAdapter)
    if folder is not None:
        return folder
    if (hub := HubId.parse(name)) is not None:
        return hub
    with contextlib.suppress(ValueError):
        check_name(plain)
        return named
    raise unknown(name, installed)


def unknown(name: str, installed: Collection[str]) -> UnknownAdapter:
    """There is none of that name: which are near, or where to look."""
    close = difflib.get_close_matches(name.lower(), {*packs(), *installed}, n=3, cutoff=0.5)
    return UnknownAdapter(
        f"There is no adapter {name!r}.",
        hint=f"Did you mean {', '.join(close)}?"
        if close
        else "`edgevlm adapter list` shows the names; owner/repo of the hub and folders work too.",
    )

"""From a name to the files that make the model: each with its source and what it must hash to."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from edgevlm.errors import ModelCorrupt, ModelUnavailable, UnknownModel
from edgevlm.models import hub as hub_client
from edgevlm.models.catalog import Catalog, CatalogEntry, CatalogFile, RuntimeFiles
from edgevlm.models.layouts import discover
from edgevlm.models.names import HubId, local_folder
from edgevlm.models.receive import Expected
from edgevlm.models.sources import FileSource, HubSource, Source

Target: TypeAlias = CatalogEntry | HubId | Path


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """`size` in bytes is near enough where the source has not told the exact one."""

    path: str
    source: Source
    size: int
    expected: Expected


@dataclass(frozen=True, slots=True)
class Plan:
    """What to fetch and what to make of it. `roles` is empty where assembling shows them, and
    `edition` is None where nothing is assembled."""

    name: str
    runtime: str
    identity: str
    files: tuple[PlannedFile, ...]
    roles: Mapping[str, str]
    quantization: Mapping[str, str]
    revisions: Mapping[str, str] = field(default_factory=dict)
    assemble: str | None = None
    disk: int = 0
    edition: int | None = None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def fingerprint(self) -> str:
        """Equal for plans that lead to the same files."""
        return _digest([self.identity, dict(self.revisions)])


def find_target(name: str, catalog: Catalog) -> Target:
    """Tell a catalog name, a local folder and a hub id apart. Raises UnknownModel."""
    if name in catalog.entries:
        return catalog.entries[name]
    folder = local_folder(name, "a model", UnknownModel)
    if folder is not None:
        return folder
    hub = HubId.parse(name)
    if hub is not None:
        return catalog.by_base(hub) or hub
    close = difflib.get_close_matches(name.lower(), catalog.entries, n=3, cutoff=0.5)
    raise UnknownModel(
        f"There is no model {name!r}.",
        hint=f"Did you mean {', '.join(close)}?"
        if close
        else "`edgevlm model list` shows the names; owner/repo of the hub and folders work too.",
    )


def target_key(target: CatalogEntry | HubId) -> str:
    """The folder that holds the model in the store."""
    return target.name if isinstance(target, CatalogEntry) else target.key


def target_identity(target: CatalogEntry | HubId, runtime: str) -> str:
    """What the plan would be called, without asking the network. Raises ModelUnavailable."""
    if isinstance(target, HubId):
        return _digest([str(target), runtime])
    recipe = _recipe(target, runtime)
    made = [recipe.assemble or "", str(recipe.edition)]
    return _digest([*made, *(f"{f.path} {f.source} {f.sha256}" for f in recipe.files)])


def make_plan(target: CatalogEntry | HubId, runtime: str) -> Plan:
    """Ask the sources what is not known yet.

    Raises UnknownModel, ModelUnavailable, ModelCorrupt.
    """
    if isinstance(target, HubId):
        return _hub_plan(target, runtime)
    return _catalog_plan(target, runtime)


def needs_network(target: CatalogEntry | HubId, runtime: str) -> bool:
    if isinstance(target, HubId):
        return True
    return any(not isinstance(f.source, FileSource) for f in _recipe(target, runtime).files)


def _recipe(entry: CatalogEntry, runtime: str) -> RuntimeFiles:
    recipe = entry.files_for(runtime)
    if recipe is None:
        raise ModelUnavailable(
            f"{entry.name} is not published for runtime {runtime}.",
            hint=f"It is for: {', '.join(sorted(entry.runtimes))}.",
            retryable=False,
        )
    return recipe


def _catalog_plan(entry: CatalogEntry, runtime: str) -> Plan:
    recipe = _recipe(entry, runtime)
    hubs = {f.source.hub for f in recipe.files if isinstance(f.source, HubSource)}
    listings = {hub: hub_client.list_files(hub) for hub in sorted(hubs, key=str)}
    return Plan(
        name=entry.name,
        runtime=runtime,
        identity=target_identity(entry, runtime),
        files=tuple(_planned(file, entry, listings) for file in recipe.files),
        roles={file.role: file.path for file in recipe.files if file.role},
        quantization=recipe.quantization,
        revisions={hub.repo_id: listing.hub.revision for hub, listing in listings.items()},
        assemble=recipe.assemble,
        disk=recipe.disk,
        edition=entry.edition,
    )


def _planned(
    file: CatalogFile, entry: CatalogEntry, listings: Mapping[HubId, hub_client.HubListing]
) -> PlannedFile:
    if not isinstance(file.source, HubSource):
        size = file.size if entry.verified else None
        return PlannedFile(file.path, file.source, file.size, Expected(size, file.sha256))
    listing = listings[file.source.hub]
    announced = listing.files.get(file.source.path)
    if announced is None:
        raise ModelUnavailable(
            f"{file.source.hub.repo_id} holds no file {file.source.path!r}.",
            hint="The repository has changed; a newer EdgeVLM may know its files.",
            retryable=False,
        )
    if file.sha256 and announced.sha256 and file.sha256 != announced.sha256:
        raise ModelCorrupt(
            f"The hub holds another {file.source.path} than the catalog's.",
            hint="A newer EdgeVLM may know it; this one won't run what it can't recognise.",
        )
    expected = replace(announced, sha256=file.sha256 or announced.sha256)
    source = replace(file.source, hub=listing.hub)
    return PlannedFile(file.path, source, announced.size or file.size, expected)


def _hub_plan(hub: HubId, runtime: str) -> Plan:
    listing = hub_client.list_files(hub)
    layout = discover(listing.files, runtime, str(hub))
    files = tuple(
        PlannedFile(
            path, HubSource(listing.hub, path), listing.files[path].size or 0, listing.files[path]
        )
        for path in layout.paths
    )
    return Plan(
        name=str(hub),
        runtime=runtime,
        identity=target_identity(hub, runtime),
        files=files,
        roles=layout.roles,
        quantization=layout.quantization,
        revisions={hub.repo_id: listing.hub.revision},
    )


def plan_dict(plan: Plan) -> list[dict[str, object]]:
    """The files of a plan as JSON."""
    return [
        {
            "path": f.path,
            "source": str(f.source),
            "size": f.expected.size,
            "sha256": f.expected.sha256,
            "git_sha1": f.expected.git_sha1,
        }
        for f in plan.files
    ]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

"""Where the weights come from: a folder, or a repository of the hub fetched into the store."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import ModelCorrupt, NotSupported, Offline
from edgevlm.models import hub as hub_client
from edgevlm.models.catalog import CatalogEntry, load_catalog
from edgevlm.models.checkpoint import Checkpoint, fingerprint
from edgevlm.models.disk import disk_errors, readable
from edgevlm.models.fetch import fetch
from edgevlm.models.layouts.base import configuration
from edgevlm.models.names import HubId
from edgevlm.models.plan import Plan, PlannedFile, find_target, target_key
from edgevlm.models.progress import Progress
from edgevlm.models.safetensors import SafetensorsFile
from edgevlm.models.sources import HubSource
from edgevlm.models.store import Store
from edgevlm.models.vlm_config import read_config
from edgevlm.settings import Settings

# In the place of a runtime's name: `edgevlm model remove` finds what was fetched by it.
_SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Source:
    """A checked checkpoint on disk. `origin` is its folder, or its commit on the hub."""

    name: str
    folder: Path
    origin: str
    n_parameters: int
    fingerprint: str


def find_source(name: str, settings: Settings, progress: Progress) -> Source:
    """Find, and fetch if need be, the safetensors of a folder, a hub id or a catalog name.

    Raises UnknownModel, ModelUnavailable, Offline, NoSpace; ModelCorrupt where weights are
    missing or unsound, NotSupported for a model that no exporter knows.
    """
    target = find_target(name, load_catalog())
    if isinstance(target, Path):
        return _checked(target.resolve().name, target, str(target.resolve()))
    hub = HubId.parse(name) or _base(target) if isinstance(target, CatalogEntry) else target
    if settings.offline:
        raise Offline(
            f"EDGEVLM_OFFLINE forbids fetching {hub}.", hint="Give a folder, or unset it."
        )
    plan = _plan(hub)
    store, key = Store(settings), target_key(target)
    staging = store.staging / f"{key}--{_SOURCE}--{plan.fingerprint}"
    with disk_errors(staging), store.locked(key, _SOURCE, progress):
        staging.mkdir(parents=True, exist_ok=True)
        try:
            folder, _ = fetch(plan, staging, (), progress)
        finally:
            progress.finish()
    commit = plan.revisions[hub.repo_id]
    return _checked(hub.repo, folder, f"hf://{hub.repo_id}@{commit}")


def _base(entry: CatalogEntry) -> HubId:
    hub = HubId.parse(entry.base)
    if hub is None:
        raise NotSupported(
            f"{entry.name} is put together of parts, and has no weights to convert.",
            hint="Give a folder or an owner/repo with safetensors.",
        )
    return hub


def _plan(hub: HubId) -> Plan:
    listing = hub_client.list_files(hub)
    weights = _weights(listing.files)
    if not weights:
        raise ModelCorrupt(
            f"{hub} holds no safetensors.", hint="Convert from the repository it was made of."
        )
    paths = [*configuration(listing.files), *weights]
    return Plan(
        name=f"the weights of {hub}",
        runtime=_SOURCE,
        identity=hub.key,
        files=tuple(
            PlannedFile(
                path,
                HubSource(listing.hub, path),
                listing.files[path].size or 0,
                listing.files[path],
            )
            for path in paths
        ),
        roles={},
        quantization={},
        revisions={hub.repo_id: listing.hub.revision},
    )


def _weights(paths: Collection[str]) -> list[str]:
    """One file of weights, or the shards and the index that names them."""
    if "model.safetensors" in paths:
        return ["model.safetensors"]
    return sorted(
        path
        for path in paths
        if "/" not in path and path.endswith((".safetensors", ".safetensors.index.json"))
    )


def _checked(name: str, folder: Path, origin: str) -> Source:
    with readable(folder):
        read_config(folder)
        Checkpoint(folder)
        shapes = [
            file.shape(tensor)
            for file in map(SafetensorsFile, sorted(folder.glob("*.safetensors")))
            for tensor in file
        ]
        return Source(name, folder, origin, sum(map(math.prod, shapes)), fingerprint(folder))

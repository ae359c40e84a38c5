"""From where an adapter is to the files that an install brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgevlm.adapters.catalog import packs
from edgevlm.adapters.json_fields import corrupt
from edgevlm.adapters.manifest import MANIFEST_NAME
from edgevlm.adapters.peft import MAX_BYTES, WEIGHTS_NAME
from edgevlm.adapters.peft_config import CONFIG_NAME
from edgevlm.errors import AdapterCorrupt, NotSupported
from edgevlm.models import hub as hub_client
from edgevlm.models.disk import readable, size_text
from edgevlm.models.names import HubId
from edgevlm.models.plan import Plan, PlannedFile
from edgevlm.models.receive import Expected, hash_file
from edgevlm.models.sources import FileSource, HubSource

# What stands in a record where a model's has its placement.
RUNTIME = "peft"
# Where a pack comes from; others come from an address.
SHIPPED = "edgevlm"
# What an adapter must have, and what more comes with it.
_NEEDED = (CONFIG_NAME, WEIGHTS_NAME)
_FILES = (*_NEEDED, MANIFEST_NAME, "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
_PICKLE = "adapter_model.bin"


def make_plan(name: str, origin: HubId | Path) -> Plan:
    """The files of an adapter that lies in a folder, or on the hub, which is asked.

    Raises AdapterCorrupt where one is missing or too large, NotSupported for a pickle,
    ModelUnavailable, and UnknownModel for what the hub doesn't have.
    """
    if isinstance(origin, HubId):
        return _hub_plan(name, origin)
    files = []
    for path in files_in(origin):
        with readable(origin):
            now = hash_file(origin / path)
        expected = Expected(now.size, now.sha256)
        files.append(PlannedFile(path, FileSource(origin / path), now.size, expected))
    return _plan(name, origin_of(origin), files)


def origin_of(folder: Path) -> str:
    """Where a folder is, as one line."""
    return SHIPPED if packs().get(folder.name) == folder else folder.as_uri()


def files_in(folder: Path) -> dict[str, int]:
    """What of a folder is an adapter's: path to bytes. Raises AdapterCorrupt, NotSupported."""
    with readable(folder):
        found = {p: (folder / p).stat().st_size for p in _FILES if (folder / p).is_file()}
        _require(found, (folder / _PICKLE).exists(), str(folder))
    return found


def _hub_plan(name: str, hub: HubId) -> Plan:
    listing = hub_client.list_files(hub)
    found = {path: listing.files[path].size or 0 for path in _FILES if path in listing.files}
    _require(found, _PICKLE in listing.files, str(hub))
    files = [
        PlannedFile(path, HubSource(listing.hub, path), size, expected)
        for path, size in found.items()
        for expected in [replace(listing.files[path], most=MAX_BYTES)]
    ]
    return _plan(name, f"hf://{hub}", files, {hub.repo_id: listing.hub.revision})


def _plan(
    name: str, origin: str, files: list[PlannedFile], revisions: dict[str, str] | None = None
) -> Plan:
    return Plan(
        name=name,
        runtime=RUNTIME,
        identity=origin,
        files=tuple(files),
        roles={},
        quantization={},
        revisions=revisions or {},
    )


def _require(found: Mapping[str, int], pickled: bool, what: str) -> None:
    """Raise what is wrong with an adapter of these paths and sizes."""
    if pickled and WEIGHTS_NAME not in found:
        raise NotSupported(
            f"{what} keeps its weights as a pickle ({_PICKLE}), which can run code.",
            hint="Have PEFT save them as safetensors, its default.",
        )
    for path in _NEEDED:
        if path not in found:
            raise AdapterCorrupt(
                f"{what} has no {path}.", hint=f"An adapter is a PEFT folder: {', '.join(_NEEDED)}."
            )
    if sum(found.values()) > MAX_BYTES:
        raise corrupt(f"{what} is larger than {size_text(MAX_BYTES)}")

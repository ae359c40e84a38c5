"""`edgevlm adapter`: install, list, show, remove, check and train adapters."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edgevlm.cli.adapter_train import train
from edgevlm.cli.nouns import (
    command,
    confirm_removal,
    json_option,
    make_table,
    print_json,
    print_table,
    tell_verified,
    yes_option,
)
from edgevlm.errors import AdapterCorrupt

if TYPE_CHECKING:
    from edgevlm.adapters.store import AdapterStore, Installation, InstalledAdapter
    from edgevlm.models.plan import Plan

EPILOG = """\b
Examples:
  edgevlm adapter list                        what ships, and what is installed
  edgevlm adapter install medical             a pack that ships
  edgevlm adapter install medical@1.0.0       that version of it and no other
  edgevlm adapter install owner/repo          a PEFT adapter of the hub
  edgevlm adapter train talks.jsonl --name my-adapter
  edgevlm adapter install ./my-adapter        a folder, such as training makes
  edgevlm chat --adapter medical:0.8 --image photo.jpg "What is this?"

\b
Exit codes: 0 done, 2 wrong usage, 3 adapter not to be had or damaged,
4 not supported or no room on the disk, 130 interrupted.
"""


@click.group(epilog=EPILOG)
def adapter() -> None:
    """Install, check, remove and train adapters."""


adapter.add_command(train)


@command(
    adapter,
    *("install", "medical", "medical@1.0.0", "owner/repo@revision", "./my-adapter"),
    short="Install an adapter, or another version of it.",
)
@click.argument("name")
@json_option
def install(name: str, as_json: bool) -> None:
    """Install NAME: a pack that ships, owner/repo of the hub, or a folder.

    It is checked before it is put in place, and takes the place of any other version of it.
    """
    from edgevlm.cli.progress import progress

    with progress() as shown:
        done = _store().install(name, progress=shown)
    if as_json:
        document = _adapter_json(done.adapter)
        print_json({**document, "changed": done.changed, "before": done.before})
    else:
        click.echo(_outcome(done))
        if done.adapter.manifest.notice:
            click.echo(f"Every answer with it says: {done.adapter.manifest.notice}")


@command(adapter, "list", "", "--json", short="List what ships, and what is installed.")
@json_option
def list_adapters(as_json: bool) -> None:
    """List the adapters that ship with EdgeVLM and those that are installed."""
    rows = _rows(_store())
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("No adapter ships or is installed; owner/repo of the hub and folders work.")
        return
    table = make_table("name", "version", "size", "licence", "for", "installed", "title")
    for row in rows:
        table.add_row(
            row["name"],
            _version(row["version"]),
            _size(row["size"]),
            row["licence"],
            _bases(row),
            _state(row),
            row["title"],
        )
    print_table(table)


@command(
    adapter,
    *("show", "medical", "owner/repo", "./my-adapter --json"),
    short="Show what an adapter is, and its files.",
)
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what an adapter is, what it fits, its files, and where they come from."""
    from edgevlm.models.plan import Plan

    store = _store()
    found = store.find(name)
    document = _plan_json(found) if isinstance(found, Plan) else _shown_json(found, store)
    if as_json:
        print_json(document)
    else:
        _describe(document)


@command(adapter, "remove", "medical", "medical --yes", short="Remove an adapter from this device.")
@click.argument("name")
@yes_option
@json_option
def remove(name: str, yes: bool, as_json: bool) -> None:
    """Remove an installed adapter, and what an unfinished install left of it."""
    from edgevlm.cli.progress import progress

    confirm_removal(name, yes)
    with progress() as shown:
        freed = _store().remove(name, progress=shown)
    if as_json:
        print_json({"name": name, "freed": freed})
    else:
        click.echo(f"{name} is removed: {_size(freed)} freed.")


@command(adapter, "verify", "", "medical", "--json", short="Compare files with what was installed.")
@click.argument("name", required=False)
@json_option
def verify(name: str | None, as_json: bool) -> None:
    """Read every file of NAME, or of all adapters, and compare it with what was installed."""
    results = _store().verify(name)
    damaged = tell_verified(results, lambda r: r.name, "No adapter is installed.", as_json=as_json)
    if damaged:
        raise AdapterCorrupt(
            f"Not as installed: {damaged}.",
            hint="`edgevlm adapter install NAME` puts it right.",
        )


def _store() -> AdapterStore:
    from edgevlm.adapters.store import AdapterStore
    from edgevlm.settings import load_settings

    return AdapterStore(load_settings())


def _rows(store: AdapterStore) -> list[dict[str, Any]]:
    """One for each name, with what is installed of it where something is."""
    by_name = {adapter.name: adapter for adapter in (*store.shipped(), *store.list())}
    return [_shown_json(by_name[name], store) for name in sorted(by_name)]


def _shown_json(adapter: InstalledAdapter, store: AdapterStore) -> dict[str, Any]:
    ships = {pack.name: pack.manifest.version for pack in store.shipped()}
    return {**_adapter_json(adapter), "ships": ships.get(adapter.name)}


def _adapter_json(adapter: InstalledAdapter) -> dict[str, Any]:
    manifest = adapter.manifest
    return {
        "name": adapter.name,
        "version": manifest.version,
        "title": manifest.title,
        "description": manifest.description,
        "licence": manifest.licence,
        "notice": manifest.notice,
        "bases": [asdict(base) for base in manifest.bases],
        "size": adapter.size,
        "files": dict(adapter.files),
        "origin": adapter.origin,
        "folder": str(adapter.folder),
        "installed": adapter.created or None,
    }


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "size": plan.size,
        "files": {file.path: file.size for file in plan.files},
        "origin": plan.identity,
        "revisions": dict(plan.revisions),
        "installed": None,
    }


def _outcome(done: Installation) -> str:
    adapter = done.adapter
    version, before = _version(adapter.manifest.version), done.before
    called = f"{adapter.name} {version}" if version else adapter.name
    if not done.changed:
        return f"{called} is installed already, in {adapter.folder}"
    earlier = _version(before) if before not in (None, adapter.manifest.version) else ""
    instead = f" in place of {earlier or 'what was there'}" if before is not None else ""
    size = f"{_size(adapter.size)}, licence {adapter.manifest.licence}"
    return f"{called} is installed{instead}: {size}, in {adapter.folder}"


def _version(version: str | None) -> str:
    """Empty where nobody gave it one."""
    from edgevlm.adapters.manifest import NO_VERSION

    return "" if version in (None, NO_VERSION) else str(version)


def _bases(document: dict[str, Any]) -> str:
    bases = [(base["name"], base["edition"]) for base in document["bases"]]
    return ", ".join(f"{name} edition {n}" if n is not None else name for name, n in bases)


def _state(row: dict[str, Any]) -> str:
    if row["installed"] is None:
        return "-"
    newer = row["ships"] not in (None, row["version"])
    return f"yes ({row['ships']} ships)" if newer else "yes"


def _describe(document: dict[str, Any]) -> None:
    from edgevlm.adapters.plan import SHIPPED

    click.echo(document.get("title") or document["name"])
    if document.get("description"):
        click.echo(document["description"])
    click.echo(f"  name       {document['name']}")
    if "version" in document:
        click.echo(f"  version    {_version(document['version']) or 'none given'}")
        click.echo(f"  licence    {document['licence']}")
        click.echo(f"  for        {_bases(document) or 'any base of its shapes'}")
    if document.get("notice"):
        click.echo(f"  notice     {document['notice']}")
    ships = document["origin"] == SHIPPED
    click.echo(f"  from       {'EdgeVLM, with which it ships' if ships else document['origin']}")
    click.echo(f"  installed  {document['folder'] if document['installed'] else 'no'}")
    click.echo(f"  size       {_size(document['size'])}")
    for path, size in document["files"].items():
        click.echo(f"    {_size(size):>9}  {path}")


def _size(size: int) -> str:
    from edgevlm.models.disk import size_text

    return size_text(size)

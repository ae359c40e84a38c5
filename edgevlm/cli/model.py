"""`edgevlm model`: list, fetch, show, remove and check models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from edgevlm.cli.convert import convert
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
from edgevlm.errors import ModelCorrupt

if TYPE_CHECKING:
    from rich.table import Table

    from edgevlm.models.catalog import CatalogEntry
    from edgevlm.models.publish import Published
    from edgevlm.models.store import Store

EPILOG = """\b
Examples:
  edgevlm model list                      names, sizes, and what is on this device
  edgevlm model pull smolvlm2-500m        fetch it now rather than at the first question
  edgevlm model pull owner/repo@revision  any model of the hub in the ONNX layout
  edgevlm model show smolvlm2-500m
  edgevlm model remove smolvlm2-500m --yes
  edgevlm model convert ./folder --runtime onnx
  edgevlm model verify                    read every file again and compare

\b
Exit codes: 0 done, 2 wrong usage, 3 model not to be had or damaged,
4 no room on the disk or in memory, 130 interrupted (what was fetched is kept).
"""

_runtime = click.option("--runtime", metavar="R", help="By default the one chat would use.")


@click.group(epilog=EPILOG)
def model() -> None:
    """List, fetch, convert, check and remove models."""


model.add_command(convert)


@command(model, "list", "", "--all", "--json", short="List what there is, and what is here.")
@click.option("--all", "everything", is_flag=True, help="One line for each runtime, with sources.")
@json_option
def list_models(everything: bool, as_json: bool) -> None:
    """List the models that can be had by name, and those on this device."""
    store = _store()
    rows = _rows(store)
    if as_json:
        print_json(rows)
        return
    print_table(_all_table(rows) if everything else _short_table(rows))


@command(
    model,
    *("pull", "smolvlm2-500m", "smolvlm2-2.2b --runtime llamacpp", "owner/repo@revision"),
    short="Fetch a model, or mend a damaged one.",
)
@click.argument("name")
@_runtime
@click.option("--force", is_flag=True, help="Even where this machine's memory won't hold it.")
@json_option
def pull(name: str, runtime: str | None, force: bool, as_json: bool) -> None:
    """Fetch a model, go on with an unfinished fetch, or mend a damaged one."""
    from edgevlm.cli.progress import progress
    from edgevlm.models.disk import size_text

    placement = _chosen(name, runtime)
    if not force:
        _require_fit(name, placement)
    with progress() as shown:
        version = _store().pull(name, runtime=placement, progress=shown)
    if as_json:
        print_json(_version_json(version))
        return
    size = size_text(version.manifest.size)
    click.echo(f"{version.name} is here for runtime {version.runtime}: {size} in {version.folder}")


@command(model, "show", "smolvlm2-500m", "edgevlm-tiny --json")
@click.argument("name")
@_runtime
@json_option
def show(name: str, runtime: str | None, as_json: bool) -> None:
    """Show what a model is, its files, and where they come from."""
    from edgevlm.devices.placement import parse_placement
    from edgevlm.models.catalog import CatalogEntry
    from edgevlm.models.plan import find_target, plan_dict

    runtime = str(parse_placement(runtime)) if runtime else None
    store = _store()
    here = [v for v in store.list() if v.name == name and runtime in (None, v.runtime)]
    known: dict[str, Any] = {}
    if not here or name in store.catalog.entries:
        target = find_target(name, store.catalog)
        if isinstance(target, CatalogEntry):
            known = _entry_json(target, runtime)
        else:
            plan = store.plan(name, runtime=_chosen(name, runtime))
            known = {"runtimes": {plan.runtime: {"size": plan.size, "files": plan_dict(plan)}}}
    document = {"name": name, **known, "installed": [_version_json(v) for v in here]}
    if as_json:
        print_json(document)
    else:
        _describe(document)


@command(
    model,
    *("remove", "smolvlm2-500m", "smolvlm2-500m --runtime onnx --yes"),
    short="Remove a model from this device.",
)
@click.argument("name")
@click.option("--runtime", metavar="R", help="By default all of them.")
@yes_option
@json_option
def remove(name: str, runtime: str | None, yes: bool, as_json: bool) -> None:
    """Remove a model from this device, and what an unfinished fetch left of it."""
    from edgevlm.cli.progress import progress
    from edgevlm.models.disk import size_text

    confirm_removal(name, yes)
    with progress() as shown:
        freed = _store().remove(name, runtime=runtime, progress=shown)
    if as_json:
        print_json({"name": name, "freed": freed})
    else:
        click.echo(f"{name} is removed: {size_text(freed)} freed.")


@command(
    model, "verify", "", "smolvlm2-500m", "--json", short="Compare files with what was published."
)
@click.argument("name", required=False)
@json_option
def verify(name: str | None, as_json: bool) -> None:
    """Read every file of NAME, or of all models, and compare it with what was published."""
    results = _store().verify(name)
    damaged = tell_verified(
        results, lambda r: f"{r.name} ({r.runtime})", "No model is on this device.", as_json=as_json
    )
    if damaged:
        raise ModelCorrupt(
            f"Not as published: {damaged}.",
            hint="`edgevlm model pull NAME --runtime R` fetches what is wrong again.",
        )


def _store() -> Store:
    from edgevlm.models.store import Store
    from edgevlm.settings import load_settings

    return Store(load_settings())


def _chosen(name: str, runtime: str | None) -> str:
    """The placement asked for, which need not run here, or the one that chat would use."""
    from edgevlm.devices.placement import AUTO, parse_placement
    from edgevlm.models.choice import choose
    from edgevlm.settings import load_settings

    store, settings = _store(), load_settings()
    if runtime in (None, AUTO):
        wanted = runtime or settings.runtime
        return str(choose(name, wanted, settings, store)[0])
    asked, offers = parse_placement(runtime), store.placements(name)
    # A runtime alone means the language model's.
    language = [offer for offer in offers if offer.language == runtime]
    return str(asked if asked in offers or not language else language[0])


def _require_fit(name: str, placement: str) -> None:
    """Raise DoesNotFit before anything is fetched for nothing."""
    from edgevlm.engine.placement import Placement
    from edgevlm.models.shapes import check_fit, sizes_of
    from edgevlm.settings import load_settings

    store = _store()
    check_fit(sizes_of(name, store), Placement.parse(placement), load_settings(), store.catalog)


def _rows(store: Store) -> list[dict[str, Any]]:
    here: dict[str, list[Published]] = {}
    for version in store.list():
        here.setdefault(version.name, []).append(version)
    rows = [_entry_json(entry, None) for entry in store.catalog.entries.values()]
    rows += [{"name": name, "runtimes": {}} for name in here if name not in store.catalog.entries]
    for row in rows:
        row["installed"] = [_version_json(version) for version in here.get(row["name"], [])]
    return rows


def _entry_json(entry: CatalogEntry, runtime: str | None) -> dict[str, Any]:
    tables = entry.runtimes
    if runtime is not None:  # which may be a mix of two tables
        files = entry.files_for(runtime)
        tables = {runtime: files} if files else {}
    return {
        "name": entry.name,
        "title": entry.title,
        "family": entry.family,
        "base": entry.base,
        "parameters": entry.parameters,
        "context_length": entry.context_length,
        "licence": entry.licence,
        "verified": entry.verified,
        "runtimes": {
            name: {
                "size": files.download_size,
                "quantization": dict(files.quantization),
                "files": [
                    {
                        "path": file.path,
                        "role": file.role,
                        "source": str(file.source),
                        "size": file.size,
                        "sha256": file.sha256,
                    }
                    for file in files.files
                ],
            }
            for name, files in tables.items()
        },
    }


def _version_json(version: Published) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "name": manifest.name,
        "runtime": manifest.runtime,
        "folder": str(version.folder),
        "size": manifest.size,
        "files": len(manifest.files),
        "quantization": dict(manifest.quantization),
        "revisions": dict(manifest.revisions),
        "created": manifest.created,
    }


def _short_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = make_table("name", "parameters", "download", "licence", "on this device")
    for row in rows:
        installed = ", ".join(version["runtime"] for version in row["installed"])
        sizes = [_size(files["size"]) for files in row["runtimes"].values()]
        table.add_row(
            row["name"],
            _count(row.get("parameters")),
            sizes[0] if sizes else "",
            row.get("licence", ""),
            installed or "-",
        )
    return table


def _all_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = make_table("name", "runtime", "download", "bits", "verified", "on this device", "from")
    for row in rows:
        here = {version["runtime"]: version for version in row["installed"]}
        for runtime in dict.fromkeys([*row["runtimes"], *here]):
            files = row["runtimes"].get(runtime) or here[runtime]
            sources = files["files"]
            table.add_row(
                row["name"],
                runtime,
                _size(files["size"]),
                ", ".join(f"{part} {bits}" for part, bits in files["quantization"].items()),
                "yes" if row.get("verified") else "no",
                _size(here[runtime]["size"]) if runtime in here else "-",
                _origin(sources[0]["source"]) if isinstance(sources, list) else "",
            )
    return table


def _describe(document: dict[str, Any]) -> None:
    click.echo(document.get("title", document["name"]))
    if "base" in document:
        parameters, tokens = _count(document["parameters"]), document["context_length"]
        click.echo(f"  made from  {document['base']} ({document['licence']})")
        click.echo(f"  size       {parameters} parameters, {tokens} tokens of context")
        if not document["verified"]:
            click.echo("  verified   no: sizes are near, the hub's own hashes are what counts")
    for runtime, files in document.get("runtimes", {}).items():
        main = _origin(files["files"][0]["source"])
        click.echo(f"  {runtime}: {_size(files['size'])} from {main}")
        for file in files["files"]:
            origin = _origin(file["source"])
            elsewhere = "" if origin == main else f"  from {origin}"
            click.echo(f"    {_size(file['size']):>9}  {file['path']}{elsewhere}")
    for version in document["installed"]:
        click.echo(f"  here for {version['runtime']}: {version['folder']}")


def _origin(source: str) -> str:
    """The repository or package of a source, without the file, a commit by its first digits."""
    scheme, _, rest = source.partition("://")
    place = "/".join(rest.split("/")[: 2 if scheme == "hf" else 1])
    name, _, revision = place.partition("@")
    return f"{scheme}://{name}" + (f"@{revision[:12]}" if revision else "")


def _count(parameters: int | None) -> str:
    if parameters is None:
        return ""
    return f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def _size(size: int) -> str:
    from edgevlm.models.disk import size_text

    return size_text(size)

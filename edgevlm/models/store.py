"""The store: models by name, fetched once, checked, and found again.

<home>/models/<name>/<runtime>/     one published model (see `publish`)
<home>/models/.staging/             downloads that are not finished
<home>/models/.locks/               one lock a model, held while it is fetched
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.engine.placement import Placement
from edgevlm.errors import ModelCorrupt, ModelUnavailable, NoSpace, Offline, UnknownModel
from edgevlm.models import hub as hub_client
from edgevlm.models.catalog import Catalog, CatalogEntry, load_catalog
from edgevlm.models.disk import disk_errors, readable
from edgevlm.models.fetch import fetch
from edgevlm.models.layouts import discover, nearest, offered
from edgevlm.models.locks import locked
from edgevlm.models.names import HubId
from edgevlm.models.plan import (
    Plan,
    find_target,
    make_plan,
    needs_network,
    target_identity,
    target_key,
)
from edgevlm.models.progress import Progress, Silent
from edgevlm.models.publish import (
    Published,
    Verification,
    altered,
    publish,
    published,
    remove_leftovers,
    retract,
    verify,
    versions,
)
from edgevlm.settings import Settings

if TYPE_CHECKING:
    from edgevlm.engine.contract import ModelFiles


class Store:
    """Models under `settings.home`. Safe for several processes at once."""

    def __init__(self, settings: Settings, catalog: Catalog | None = None) -> None:
        self.catalog = catalog or load_catalog()
        self.root = settings.home / "models"
        self._offline = settings.offline

    def placements(self, name: str) -> tuple[Placement, ...]:
        """Where the model can run, by the files there are of it, on whatever device.

        Of a model of the hub that is here it says what is here; else it asks the hub.
        Raises UnknownModel, ModelUnavailable, Offline, and ModelCorrupt where files are missing.
        """
        target = find_target(name, self.catalog)
        if isinstance(target, Path):
            return _offered(paths_in(target), str(target))
        if isinstance(target, CatalogEntry):
            return target.placements
        if here := self.here(name):
            return here
        self._refuse_offline(target, "onnx")
        return _offered(hub_client.list_files(target).files, str(target))

    def here(self, name: str) -> tuple[Placement, ...]:
        """The placements of a model whose files are fetched; none of a folder. Raises
        UnknownModel."""
        target = find_target(name, self.catalog)
        if isinstance(target, Path):
            return ()
        key = target_key(target)
        found = [v.runtime for v in self.list() if v.folder.parent.parent.name == key]
        return tuple(Placement.parse(runtime) for runtime in found)

    def resolve(
        self,
        name: str,
        *,
        runtime: str,
        download: bool = True,
        progress: Progress | None = None,
    ) -> ModelFiles:
        """Return a model's files, fetched first if need be.

        `name` is a catalog name, a hub id `owner/repo[@revision]` or a local folder, which
        is used where it is; `runtime` a placement as it is spelled (`onnx+llamacpp`).
        Raises UnknownModel, ModelUnavailable, Offline, ModelCorrupt,
        NoSpace, NotSupported.
        """
        target = find_target(name, self.catalog)
        if isinstance(target, Path):
            return _local(target, runtime)
        place = self._place(target, runtime)
        version = published(place)
        if version is None or version.manifest.plan != target_identity(target, runtime):
            if download:
                version = self._updated(target, runtime, version, progress or Silent())
            elif version is None:
                raise _absent(name)
        return _model_files(_checked(version))

    def pull(self, name: str, *, runtime: str, progress: Progress | None = None) -> Published:
        """Have the model here, whole and current: fetch it, mend it, or leave it be.

        Raises what `resolve` does, and UnknownModel for a local folder.
        """
        target = find_target(name, self.catalog)
        if isinstance(target, Path):
            raise UnknownModel(f"{name} is a folder already.", hint="Use it as it is: --model.")
        return self._pull(target, runtime, progress or Silent())

    def plan(self, name: str, *, runtime: str) -> Plan:
        """What a pull would fetch. Raises what `pull` does."""
        target = find_target(name, self.catalog)
        if isinstance(target, Path):
            raise UnknownModel(f"{name} is a folder already.", hint="Use it as it is: --model.")
        self._refuse_offline(target, runtime)
        return make_plan(target, runtime)

    def remove(
        self, name: str, *, runtime: str | None = None, progress: Progress | None = None
    ) -> int:
        """Remove a model, and what an unfinished download left of it. Returns bytes freed.

        Raises UnknownModel, and ModelUnavailable where nothing of it is here.
        """
        key = self._key(name)
        runtimes = {p.name for p in self._runtimes(key)} | set(self._unfinished(key))
        if not runtimes:
            raise _absent(name)
        if runtime is not None and runtime not in runtimes:
            raise ModelUnavailable(
                f"{name} is not on this device for runtime {runtime}.",
                hint=f"It is here for: {', '.join(sorted(runtimes))}.",
                retryable=False,
            )
        runtimes = {runtime} if runtime is not None else runtimes
        freed = 0
        with disk_errors(self.root):
            for each in sorted(runtimes):
                with self.locked(key, each, progress or Silent()):
                    freed += self._remove(key, each)
            with contextlib.suppress(OSError):  # other runtimes' files may be there
                (self.root / key).rmdir()
        return freed

    def _remove(self, key: str, runtime: str) -> int:
        place = self.root / key / runtime
        unfinished = [*self.staging.glob(f"{key}--{runtime}--*")]
        freed = _freed_by([place, *unfinished])
        retract(place)
        for folder in unfinished:
            shutil.rmtree(folder)
        return freed

    def _unfinished(self, key: str) -> Iterator[str]:
        """The runtimes for which a download of the model has begun and not ended."""
        for folder in self.staging.glob(f"{key}--*--*"):
            # From the right: a hub model's key may begin with another model's and `--`.
            its_key, runtime, _ = folder.name.rsplit("--", 2)
            if its_key == key:
                yield runtime

    def verify(self, name: str | None = None) -> Sequence[Verification]:
        """Read every byte of one model, or of all, and compare it with its record.

        Raises UnknownModel, and ModelUnavailable where a named model is not here.
        """
        places = self._places() if name is None else self._runtimes(self._key(name))
        found = (verify(place, place.parent.name, place.name) for place in places)
        results = [result for result in found if result is not None]
        if name is not None and not results:
            raise _absent(name)
        return results

    def _updated(
        self,
        target: CatalogEntry | HubId,
        runtime: str,
        older: Published | None,
        progress: Progress,
    ) -> Published:
        try:
            return self._pull(target, runtime, progress)
        except (ModelUnavailable, NoSpace) as error:
            if older is None:
                raise
            progress.note(f"Using an older {older.name}: {error.message}")
            return older

    def _pull(self, target: CatalogEntry | HubId, runtime: str, progress: Progress) -> Published:
        key = target_key(target)
        if self._sound(target, runtime) is None:
            self._refuse_offline(target, runtime)
        # A branch may have moved on; what the catalog names stays what it is.
        may_move = isinstance(target, HubId) and not self._offline
        with disk_errors(self.root), self.locked(key, runtime, progress):
            version = self._sound(target, runtime)
            if version is None or may_move:
                plan = make_plan(target, runtime)
                if version is None or dict(version.manifest.revisions) != dict(plan.revisions):
                    version = self._publish(plan, key, progress)
            remove_leftovers(version)
            self._clear_staging(key, runtime)
            return version

    def _publish(self, plan: Plan, key: str, progress: Progress) -> Published:
        place = self.root / key / plan.runtime
        staging = self.staging / f"{key}--{plan.runtime}--{plan.fingerprint}"
        self._clear_staging(key, plan.runtime, keep=staging)
        staging.mkdir(parents=True, exist_ok=True)
        try:
            # Placements of one model share files: what one has, another needn't fetch.
            donors = [version for other in self._runtimes(key) for version in versions(other)]
            folder, manifest = fetch(plan, staging, donors, progress)
            return publish(folder, place, manifest)
        finally:
            progress.finish()

    def _clear_staging(self, key: str, runtime: str, keep: Path | None = None) -> None:
        for folder in self.staging.glob(f"{key}--{runtime}--*"):
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _sound(self, target: CatalogEntry | HubId, runtime: str) -> Published | None:
        """What is published, if it is what it should be."""
        try:
            version = published(self._place(target, runtime))
        except ModelCorrupt:
            return None
        if version is None or version.manifest.plan != target_identity(target, runtime):
            return None
        return None if altered(version, thorough=False) else version

    def _refuse_offline(self, target: CatalogEntry | HubId, runtime: str) -> None:
        if not self._offline or not needs_network(target, runtime):
            return
        here = ", ".join(sorted({v.name for v in self.list()})) or "no model"
        raise Offline(
            f"{_name(target)} is not on this device, and EDGEVLM_OFFLINE forbids fetching it.",
            hint=f"On this device: {here}. Unset EDGEVLM_OFFLINE to fetch others.",
        )

    def locked(
        self, key: str, runtime: str, progress: Progress
    ) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from what is fetched for a runtime of a model; waits for them."""
        return locked(self.root, f"{key}--{runtime}", key, progress)

    def _key(self, name: str) -> str:
        """The model's folder, also for what is here and in the catalog no more."""
        for version in self.list():
            if version.name == name:
                return version.folder.parent.parent.name
        target = find_target(name, self.catalog)
        if isinstance(target, Path):
            raise UnknownModel(f"{name} is a folder, not a model of the store.")
        return target_key(target)

    def _place(self, target: CatalogEntry | HubId, runtime: str) -> Path:
        return self.root / target_key(target) / runtime

    def _runtimes(self, key: str) -> Sequence[Path]:
        return sorted(path for path in (self.root / key).glob("*") if path.is_dir())

    @property
    def staging(self) -> Path:
        """Where downloads are while they are not finished."""
        return self.root / ".staging"

    def _places(self) -> Sequence[Path]:
        return sorted(pointer.parent for pointer in self.root.glob("[!.]*/*/current"))

    def list(self) -> tuple[Published, ...]:
        """All published models whose record can be read, by name and runtime."""
        found = []
        for place in self._places():
            with contextlib.suppress(ModelCorrupt):
                version = published(place)
                if version is not None:
                    found.append(version)
        return tuple(sorted(found, key=lambda v: (v.name, v.runtime)))


def _absent(name: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{name} is not on this device.",
        hint=f"`edgevlm model pull {name}` fetches it.",
        retryable=False,
    )


def _checked(version: Published) -> Published:
    reasons = altered(version, thorough=False)
    for path, reason in reasons.items():
        name = version.name
        raise ModelCorrupt(
            f"{name} is damaged: {path}: {reason}.",
            hint=f"`edgevlm model pull {name}` fetches what is wrong again.",
        )
    return version


def _model_files(version: Published) -> ModelFiles:
    from edgevlm.engine.contract import ModelFiles

    manifest = version.manifest
    return ModelFiles(
        name=manifest.name,
        folder=version.folder,
        roles={role: version.folder / path for role, path in manifest.roles.items()},
        quantization=manifest.quantization,
        edition=manifest.edition,
    )


def _local(folder: Path, runtime: str) -> ModelFiles:
    from edgevlm.engine.contract import ModelFiles

    layout = discover(paths_in(folder), runtime, str(folder))
    return ModelFiles(
        name=folder.name,
        folder=folder,
        roles={role: folder / path for role, path in layout.roles.items()},
        quantization=layout.quantization,
    )


def _offered(paths: Collection[str], what: str) -> tuple[Placement, ...]:
    found = tuple(offered(paths))
    if not found:
        discover(paths, nearest(paths, what), what)  # says what is missing
    return found


def paths_in(folder: Path) -> frozenset[str]:
    """The files that may belong to a model: at the top, and in the folders of runtimes."""
    paths = [*folder.glob("*"), *folder.glob("onnx/*"), *folder.glob("mlx/*")]
    paths += folder.glob("coreml/**/*")
    with readable(folder):
        return frozenset(p.relative_to(folder).as_posix() for p in paths if p.is_file())


def _name(target: CatalogEntry | HubId) -> str:
    return target.name if isinstance(target, CatalogEntry) else str(target)


def _freed_by(folders: Iterable[Path]) -> int:
    """Bytes that removing all of them frees: what a placement of the model elsewhere shares
    with them (a hard link) stays."""
    files = [p.lstat() for folder in folders for p in folder.rglob("*") if p.is_file()]
    links = Counter((file.st_dev, file.st_ino) for file in files)
    last = {(file.st_dev, file.st_ino): file for file in files}
    return sum(f.st_size for place, f in last.items() if links[place] >= f.st_nlink)

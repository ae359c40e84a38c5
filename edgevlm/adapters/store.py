"""The store of adapters: installed by name, checked, and found again.

<home>/adapters/<name>/      one installed adapter (see `edgevlm.models.publish`)
<home>/adapters/.staging/    what is on its way in
<home>/adapters/.locks/      one lock an adapter, held while it is installed or removed

One of the hub is installed by its id, so that it can't take a pack's place by its name.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgevlm.adapters.base import check_current
from edgevlm.adapters.catalog import Named, Target, find_target, packs, unknown
from edgevlm.adapters.manifest import Manifest, manifest_of
from edgevlm.adapters.peft import read_peft
from edgevlm.adapters.plan import RUNTIME, files_in, make_plan, origin_of
from edgevlm.engine.adapter import Lora
from edgevlm.errors import (
    AdapterCorrupt,
    EdgeVLMError,
    ModelCorrupt,
    ModelUnavailable,
    NoSpace,
    NotSupported,
    Offline,
    UnknownAdapter,
    UnknownModel,
)
from edgevlm.models.disk import disk_errors
from edgevlm.models.fetch import fetch
from edgevlm.models.locks import locked
from edgevlm.models.names import HubId
from edgevlm.models.plan import Plan
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
)
from edgevlm.models.sources import FileSource, parse_source
from edgevlm.settings import Settings

T = TypeVar("T")
# After these, what a download has brought so far is kept for the next one.
_KEEPING = (KeyboardInterrupt, ModelUnavailable, NoSpace, OSError)


@dataclass(frozen=True, slots=True)
class InstalledAdapter:
    """An adapter whose files are here. `name` is what it is asked for by, `origin` where it came
    from, as one line, and `files` maps a path to bytes.

    `created` is when it was installed; empty for a folder that is used where it is.
    """

    name: str
    folder: Path
    manifest: Manifest
    origin: str
    files: Mapping[str, int]
    created: str = ""

    @property
    def size(self) -> int:
        return sum(self.files.values())


@dataclass(frozen=True, slots=True)
class Installation:
    """What an install came to: `before` is the version that was here, None where none was.
    Unless `changed`, all was as it should be."""

    adapter: InstalledAdapter
    before: str | None
    changed: bool


class AdapterStore:
    """Adapters under `settings.home`. Safe for several processes at once."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.home / "adapters"
        self._offline = settings.offline

    def install(self, name: str, *, progress: Progress | None = None) -> Installation:
        """Have an adapter here, whole and current, in place of any other version of it.

        `name` is a pack that ships (`medical`, `medical@1.0.0`), a hub id
        `owner/repo[@revision]`, or a folder, whose adapter goes by the name in its
        edgevlm.json. Raises UnknownAdapter, AdapterCorrupt, NotSupported, ModelUnavailable,
        Offline and NoSpace, AdapterMismatch for one of an edition of its base that is no more,
        and what was here stays.
        """
        target, origin = self._asked(name)
        if origin is None:
            here = self._current(target, lambda v: _installed(_sound(v, thorough=True)))
            return Installation(here, here.manifest.version, changed=False)
        progress = progress or Silent()
        with _told_of_adapters():
            plan = make_plan(str(target), origin)
            if isinstance(origin, Path):  # of the hub it is looked at once it is here
                _accept(origin, _hashes(plan), plan.name)
            with disk_errors(self.root), locked(self.root, target.key, plan.name, progress):
                old = self._whole(target)
                before = None if old is None else _manifest(old).version
                new = old if old is not None and _is_same(old, plan) else None
                version = new or self._publish(plan, target, progress)
                remove_leftovers(version)
                self._clear_staging(target)
                return Installation(_installed(version), before, changed=new is None)

    def resolve(self, name: str) -> InstalledAdapter:
        """The adapter of that name, its files there and as large as they should be.

        A folder is used where it is. Raises UnknownAdapter, AdapterCorrupt, and Offline for one
        of the hub that is not here and can't be installed.
        """
        target = self._target(name)
        if isinstance(target, Path):
            return _in_place(target)
        return self._current(target, lambda v: _installed(_sound(v)))

    def load(self, name: str) -> Lora:
        """Read an adapter, checked. Raises what `resolve` and `read_peft` do."""
        target = self._target(name)
        if isinstance(target, Path):
            plan = make_plan(_in_place(target).name, target)
            return _read(target, _hashes(plan), plan.name)
        return self._current(target, lambda v: read_peft(_sound(v).folder, name=v.name))

    def find(self, name: str) -> InstalledAdapter | Plan:
        """What is here by that name, installed, shipped, or a folder, its bytes not looked at; of
        the hub, what an install would fetch. Raises what `install` does."""
        target = self._target(name)
        if isinstance(target, Path):
            return _in_place(target)
        try:
            return self._current(target, _installed)
        except (UnknownAdapter, Offline):
            _, origin = self._asked(name)
            if origin is None:
                raise
        if isinstance(origin, Path):
            return _in_place(origin)
        with _told_of_adapters():
            return make_plan(str(target), origin)

    def list(self) -> tuple[InstalledAdapter, ...]:
        """All installed adapters whose records can be read, by name."""
        found = []
        for place in self._places():
            with contextlib.suppress(ModelCorrupt, AdapterCorrupt):
                found.append(_settled(place, _installed))
        return tuple(sorted(filter(None, found), key=lambda adapter: adapter.name))

    def shipped(self) -> tuple[InstalledAdapter, ...]:
        """The packs that ship, installed or not, by name. Raises AdapterCorrupt."""
        return tuple(_in_place(folder) for folder in packs().values())

    def remove(self, name: str, *, progress: Progress | None = None) -> int:
        """Remove an adapter, and what an unfinished install left of it. Returns bytes freed.

        Raises UnknownAdapter.
        """
        target = self._kept(name)
        place = self.root / target.key
        if isinstance(target, Named) and target.version is not None:
            self._current(target, lambda v: v)  # another version is not to go
        if not place.exists() and not self._staged(target):
            raise self._absent(target)
        progress = progress or Silent()
        with disk_errors(self.root), locked(self.root, target.key, str(target), progress):
            files = [f for folder in (place, *self._staged(target)) for f in folder.rglob("*")]
            freed = sum(file.stat().st_size for file in files if file.is_file())
            retract(place)
            self._clear_staging(target)
        return freed

    def verify(self, name: str | None = None) -> Sequence[Verification]:
        """Read every byte of one adapter, or of all, and compare it with what was installed.

        Raises UnknownAdapter.
        """
        if name is None:
            places = self._places()
        else:
            target = self._kept(name)
            with contextlib.suppress(AdapterCorrupt):
                self._current(target, lambda v: v)
            places = [self.root / target.key]
        found = (verify(place, place.name, RUNTIME) for place in places)
        return [result for result in found if result is not None]

    def _target(self, name: str) -> Target:
        return find_target(name, [version.name for version in self._published()])

    def _kept(self, name: str) -> Named | HubId:
        target = self._target(name)
        if isinstance(target, Path):
            raise UnknownAdapter(
                f"{name} is a folder, not an installed adapter.",
                hint="`edgevlm adapter list` shows the names.",
            )
        return target

    def _asked(self, name: str) -> tuple[Named | HubId, HubId | Path | None]:
        """What is asked for, and where an install would take it from: None where nothing but
        what is here will do."""
        target = self._target(name)
        if isinstance(target, HubId):
            return target, None if self._offline else target
        if isinstance(target, Path):
            return Named(_in_place(target).name), target
        folder = packs().get(target.name)
        if folder is None or target.version not in (None, manifest_of(folder).version):
            return target, None
        return Named(target.name), folder

    def _publish(self, plan: Plan, target: Named | HubId, progress: Progress) -> Published:
        staging = self.root / ".staging" / f"{target.key}--{plan.fingerprint}"
        self._clear_staging(target, keep=staging if plan.revisions else None)
        staging.mkdir(parents=True, exist_ok=True)
        try:
            folder, record = fetch(plan, staging, [], progress)
            if plan.revisions:
                _accept(folder, {path: f.sha256 for path, f in record.files.items()}, plan.name)
            return publish(folder, self.root / target.key, record)
        except BaseException as error:
            # A copy begins anew, so there is nothing to keep of it.
            if not (plan.revisions and isinstance(error, _KEEPING)):
                shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            progress.finish()

    def _staged(self, target: Named | HubId) -> Sequence[Path]:
        found = (self.root / ".staging").glob(f"{target.key}--*")
        # One adapter's key may begin with another's and `--`.
        return [folder for folder in found if folder.name.rpartition("--")[0] == target.key]

    def _clear_staging(self, target: Named | HubId, keep: Path | None = None) -> None:
        for folder in self._staged(target):
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _current(self, target: Named | HubId, use: Callable[[Published], T]) -> T:
        """Use what is in force, if it is of the version that is asked for."""
        wanted = target.version if isinstance(target, Named) else None

        def use_wanted(version: Published) -> T:
            if wanted not in (None, _manifest(version).version):
                raise self._absent(target)
            return use(version)

        with _told_of_adapters(f"`edgevlm adapter install {target}` puts it right."):
            result = _settled(self.root / target.key, use_wanted)
        if result is None:
            raise self._absent(target)
        return result

    def _whole(self, target: Named | HubId) -> Published | None:
        """What is in force, if all of it is as it was installed and can be read."""
        with contextlib.suppress(ModelCorrupt, AdapterCorrupt, NotSupported):
            version = published(self.root / target.key)
            if version is not None:
                _manifest(version)
                return _sound(version, thorough=True)
        return None

    def _places(self) -> Sequence[Path]:
        return sorted(pointer.parent for pointer in self.root.glob("[!.]*/current"))

    def _published(self) -> Iterator[Published]:
        for place in self._places():
            with contextlib.suppress(ModelCorrupt):
                version = published(place)
                if version is not None:
                    yield version

    def _absent(self, target: Named | HubId) -> EdgeVLMError:
        if isinstance(target, HubId):
            if self._offline:
                return Offline(
                    f"{target} is not installed, and EDGEVLM_OFFLINE forbids fetching it.",
                    hint="Unset EDGEVLM_OFFLINE to install it.",
                )
            return _not_installed(target)
        folder = packs().get(target.name)
        versions = {} if folder is None else {manifest_of(folder).version: "ships"}
        if versions and target.version in (None, *versions):
            return _not_installed(target)
        with contextlib.suppress(ModelCorrupt, AdapterCorrupt):
            version = published(self.root / target.key)
            if version is not None:
                versions[_manifest(version).version] = "is installed"
        if not versions or target.version is None:
            return unknown(str(target), [version.name for version in self._published()])
        known = " and ".join(f"{version} {how}" for version, how in versions.items())
        return UnknownAdapter(
            f"There is no {target}: {known}.", hint=f"Leave out @{target.version} to take what is."
        )


def _not_installed(target: Named | HubId) -> UnknownAdapter:
    return UnknownAdapter(
        f"{target} is not installed.", hint=f"`edgevlm adapter install {target}` installs it."
    )


def _manifest(version: Published) -> Manifest:
    return manifest_of(version.folder, version.name)


def _settled(place: Path, use: Callable[[Published], T]) -> T | None:
    """Use what is in force at a place, and again should another version take its place meanwhile;
    None where nothing is. Raises ModelCorrupt for its record, and what `use` does."""
    version = published(place)
    while version is not None:
        try:
            return use(version)
        except (AdapterCorrupt, OSError):
            before, version = version, published(place)
            if version is not None and version.folder == before.folder:
                raise
    return None


def _installed(version: Published) -> InstalledAdapter:
    record = version.manifest
    return InstalledAdapter(
        name=version.name,
        folder=version.folder,
        manifest=_manifest(version),
        origin=record.plan,
        files={path: file.size for path, file in record.files.items()},
        created=record.created,
    )


def _in_place(folder: Path) -> InstalledAdapter:
    files = files_in(folder)
    manifest = manifest_of(folder)
    return InstalledAdapter(manifest.name, folder, manifest, origin_of(folder), files)


def _sound(version: Published, *, thorough: bool = False) -> Published:
    """Raises AdapterCorrupt unless its files are as they were installed."""
    for path, reason in altered(version, thorough=thorough).items():
        raise AdapterCorrupt(
            f"{version.name} is damaged: {path}: {reason}.",
            hint=f"`edgevlm adapter install {_again(version)}` puts it right.",
        )
    return version


def _again(version: Published) -> str:
    """What to install to have it once more."""
    origin = version.manifest.plan
    if not origin.startswith("file:"):
        return version.name
    source = parse_source(origin)
    return shlex.quote(str(source.path)) if isinstance(source, FileSource) else origin


def _is_same(version: Published, plan: Plan) -> bool:
    """Whether an install would bring what is here."""
    if plan.revisions:
        return dict(version.manifest.revisions) == dict(plan.revisions)
    return _hashes(plan) == {path: file.sha256 for path, file in version.manifest.files.items()}


def _hashes(plan: Plan) -> dict[str, str | None]:
    return {file.path: file.expected.sha256 for file in plan.files}


def _accept(folder: Path, hashes: Mapping[str, str | None], name: str) -> None:
    """Read what is to be installed. Raises what `_read` does, and AdapterMismatch."""
    check_current(name, manifest_of(folder, name).bases)
    _read(folder, hashes, name)


def _read(folder: Path, hashes: Mapping[str, str | None], name: str) -> Lora:
    """Read an adapter that nobody has looked at yet: its files must have the hashes that its
    edgevlm.json names. Raises AdapterCorrupt and NotSupported."""
    named = manifest_of(folder, name).files
    for path in named.keys() & hashes.keys():
        found, wanted = hashes[path] or "", named[path].sha256
        if found != wanted:
            raise AdapterCorrupt(
                f"{path} of {name} is not the one that its edgevlm.json names:"
                f" its SHA-256 is {found[:16]}..., not {wanted[:16]}...",
                hint="It was altered or is damaged; take it from where it was published.",
            )
    return read_peft(folder, name=name)


@contextlib.contextmanager
def _told_of_adapters(hint: str | None = None) -> Iterator[None]:
    """Errors of the parts that serve models as well are an adapter's here."""
    try:
        yield
    except ModelCorrupt as error:
        raise AdapterCorrupt(
            error.message, hint=hint or error.hint, retryable=error.retryable
        ) from error
    except UnknownModel as error:
        raise UnknownAdapter(error.message, hint=error.hint) from error

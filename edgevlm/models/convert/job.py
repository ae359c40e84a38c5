"""One conversion from beginning to end, which a second call goes on with after a break."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from edgevlm import __version__
from edgevlm.errors import ModelCorrupt, ModelUnavailable, NoSpace, UsageError
from edgevlm.families import load_family
from edgevlm.models.convert.check import check, source_logits
from edgevlm.models.convert.recipe import Recipe
from edgevlm.models.convert.report import Report, read_report
from edgevlm.models.convert.source import Source, find_source
from edgevlm.models.convert.workplace import Workplace, alone, restore
from edgevlm.models.disk import disk_errors, require_space
from edgevlm.models.progress import Progress, Silent
from edgevlm.models.publish import now
from edgevlm.settings import Settings, load_settings

_PACKAGES = ("onnx", "onnxruntime", "gguf", "llama-cpp-python", "mlx-vlm", "coremltools", "torch")


def convert(
    name: str,
    recipe: Recipe,
    *,
    output: Path | None = None,
    force: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write the files of `recipe` for the model `name` and compare them with their source.

    `name` is a folder with safetensors, a hub id or a catalog name. `output` appears when
    it is whole and has been tried; by default it is `<name>-<runtime>` in the working
    directory. Work that was broken off is gone on with. `force` replaces what an earlier
    conversion has made. Raises UsageError, UnknownModel, ModelUnavailable, ModelCorrupt (also
    for a result that differs from its source), NotSupported, NoSpace, RuntimeFailed.
    """
    settings, progress = settings or load_settings(), progress or Silent()
    recipe.check_installed()
    source = find_source(name, settings, progress)
    load_family(source.folder)
    output = Path(output or f"{source.name}-{recipe.runtime}").expanduser().absolute()
    whole, weights = output.resolve(), source.folder.resolve()
    if not output.name or whole == weights or whole in weights.parents:
        raise UsageError(f"The result can't take the place of {output}.", hint="Use --output.")
    key = _key(source, recipe)
    with _disk_errors(output), alone(output, settings.home / "locks"):
        output.parent.mkdir(parents=True, exist_ok=True)
        restore(output)
        finished = _finished(output, key, force)
        if finished is not None:
            progress.note(f"{output} is as asked for already (--force makes it anew).")
            return finished
        return _make(source, recipe, output, key, progress)


@contextlib.contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    try:
        with disk_errors(output):
            yield
    except (NoSpace, ModelUnavailable) as error:
        error.hint = "Free some space, or choose another --output; what is finished is kept."
        raise


def _make(source: Source, recipe: Recipe, output: Path, key: str, progress: Progress) -> Report:
    work = Workplace(output, key)
    needed = int(source.n_parameters * recipe.bytes_per_parameter) - _bytes_in(work.folder)
    require_space(output.parent, max(needed, 0), f"Converting {source.name}")
    try:
        work.stage("files", lambda: recipe.write(source.folder, work.files, source.name, progress))
        expected = work.folder / "source_logits.npy"
        work.stage("source", lambda: source_logits(source.folder, expected, progress))
        found = check(work.files, recipe, np.load(expected), progress)
    except ModelCorrupt:
        work.discard()
        raise
    finally:
        progress.finish()
    report = Report(
        name=source.name,
        runtime=recipe.runtime,
        folder=str(output),
        source=source.origin,
        source_fingerprint=source.fingerprint,
        key=key,
        decoder=recipe.label,
        decoder_bits=recipe.bits,
        vision_bits=recipe.vision_bits,
        size=_bytes_in(work.files),
        versions=_versions(),
        check=found,
        created=now(),
    )
    report.save(work.files)
    work.publish()
    return report


def _finished(output: Path, key: str, force: bool) -> Report | None:
    """What is there already, if it is the same. Raises UsageError where it may not go."""
    if not output.exists():
        return None
    report = read_report(output)
    if report is None and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"{output} is there, and no conversion made it.", hint="Choose another --output."
        )
    if report is None or force:
        return None
    if report.key != key:
        raise UsageError(
            f"{output} holds another conversion, of {report.source}.",
            hint="--force replaces it; --output chooses another folder.",
        )
    return replace(report, folder=str(output))


def _key(source: Source, recipe: Recipe) -> str:
    parts = [source.fingerprint, asdict(recipe), __version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    found = {"edgevlm": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

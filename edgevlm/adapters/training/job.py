"""One run from beginning to end: data, pictures, decoder, loop, pack."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.adapters.base import Base, describe_base
from edgevlm.adapters.manifest import MANIFEST_NAME, read_manifest
from edgevlm.adapters.training.data import Example, read_examples
from edgevlm.adapters.training.pictures import Pictures, files_key
from edgevlm.adapters.training.recipe import Recipe
from edgevlm.adapters.training.report import Report
from edgevlm.adapters.training.samples import Sample, digest_of, make_samples, split
from edgevlm.devices.threads import compute_threads
from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.engine.placement import Placement
from edgevlm.errors import Interrupted, NotSupported, UsageError
from edgevlm.families import known_family
from edgevlm.media import MediaLimits
from edgevlm.models.disk import disk_errors
from edgevlm.models.progress import Progress, Silent
from edgevlm.models.store import Store
from edgevlm.runtimes import get_runtime
from edgevlm.settings import Settings

if TYPE_CHECKING:
    from edgevlm.adapters.training.state import State

_PACKAGES = ("torch", "transformers", "peft", "gguf", "safetensors")
_DECODER = "llamacpp"
# Positions of one conversation, where no setting says less.
_LONGEST = 8192


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is learned from, what is judged with, and where the pictures' rows are."""

    learn: list[Sample]
    judge: list[Sample]
    pictures: Pictures

    @property
    def n_pictures(self) -> int:
        return len({key for s in (*self.learn, *self.judge) for key in s.pictures})


def train(
    recipe: Recipe,
    settings: Settings,
    *,
    progress: Progress | None = None,
    restart: bool = False,
) -> Report:
    """Train an adapter and write its pack into `recipe.out`.

    Broken off, by Ctrl-C or otherwise, the same call goes on where it was; `restart` forgets
    that. Raises UsageError for data that can't be learned from and for a run of this name with
    other settings that is not finished, NotSupported for a model that can't be trained on or a
    package that is missing, Interrupted, what `Store.resolve` raises, MediaError, PromptTooLong,
    NoSpace.
    """
    progress = progress or Silent()
    _require_packages()
    _require_free(recipe)
    examples = read_examples(recipe.data, recipe.system)
    work = settings.home / "training" / _work_name(recipe)
    try:
        with disk_errors(work), _alone(work, recipe.name):
            files, placement = _find(recipe.model, Store(settings), progress)
            base = describe_base(files)
            prepared = _prepare(recipe, settings, files, placement, base, examples, progress)
            return _learn(recipe, files, base, prepared, work, progress, restart)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "Stopped before the first step.", hint="Pictures that are encoded stay so."
        ) from error


def _learn(
    recipe: Recipe,
    files: ModelFiles,
    base: Base,
    prepared: _Prepared,
    work: Path,
    progress: Progress,
    restart: bool,
) -> Report:
    import torch

    from edgevlm.adapters.training.decoder import load_decoder
    from edgevlm.adapters.training.loop import Loop
    from edgevlm.adapters.training.pack import write_pack
    from edgevlm.adapters.training.state import State, read_state

    digest = _digest(recipe, files, prepared)
    state = None if restart else read_state(work)
    if state is not None and state.digest != digest:
        if state.ended is None:
            raise UsageError(
                f"A run of {recipe.name} with other settings or data has come to step"
                f" {state.step}.",
                hint="Repeat its own command to go on, or begin anew with --restart.",
            )
        state = None
    if state is not None:
        progress.note(f"Going on from step {state.step} ...")
    torch.set_num_threads(recipe.threads or compute_threads())
    n_learn, n_judge = len(prepared.learn), len(prepared.judge)
    judged = f", evaluating with {n_judge}" if n_judge else ""
    progress.note(f"Learning from {n_learn} conversations{judged} ...")
    loop = Loop(
        load_decoder(files),
        recipe,
        prepared.pictures,
        work,
        state or State(digest),
        progress.note,
    )
    loop.run(prepared.learn, prepared.judge)
    report = _report(recipe, base, prepared, loop.state)
    write_pack(recipe, base, report, loop.config, loop.adapter())
    return report


def _prepare(
    recipe: Recipe,
    settings: Settings,
    files: ModelFiles,
    placement: Placement,
    base: Base,
    examples: list[Example],
    progress: Progress,
) -> _Prepared:
    family = known_family(files.folder)
    if family is None:
        raise NotSupported(
            f"{files.name} can't be trained on: its prompts are laid out by its runtime.",
            hint="Models of the SmolVLM family and edgevlm-tiny can.",
        )
    options = LoadOptions(
        threads=recipe.threads or compute_threads(), cache=settings.home / "cache"
    )
    vision = get_runtime(placement.vision).load_vision(files, options)
    try:
        folder = settings.home / "training" / "pictures" / files_key(files)
        limits = MediaLimits(max_pixels=settings.max_pixels, allow_network=False)
        pictures = Pictures(folder, family, vision, limits, progress.note)
        longest = settings.context_length or _LONGEST
        samples = make_samples(examples, family, pictures, longest)
    finally:
        vision.close()
    return _Prepared(*split(samples, recipe.eval_share, recipe.seed), pictures)


def _find(model: str, store: Store, progress: Progress) -> tuple[ModelFiles, Placement]:
    """A model's files with its decoder as a GGUF, fetched if need be."""
    here = store.here(model)
    usable = [
        placement
        for placement in store.placements(model)
        if placement.language == _DECODER and get_runtime(placement.vision).unavailable() is None
    ]
    if not usable:
        raise NotSupported(
            f"{model} can't be trained on: there is no GGUF of its decoder.",
            hint="Make one with `edgevlm model convert MODEL --runtime llamacpp`.",
        )
    placement = min(usable, key=lambda p: (p not in here, p.vision != "onnx", str(p)))
    return store.resolve(model, runtime=str(placement), progress=progress), placement


def _report(recipe: Recipe, base: Base, prepared: _Prepared, state: State) -> Report:
    evaluations = dict(state.evaluations)
    return Report(
        name=recipe.name,
        folder=str(recipe.out),
        model=base.name,
        fingerprint=base.fingerprint,
        examples=len(prepared.learn),
        held_out=len(prepared.judge),
        pictures=prepared.n_pictures,
        steps=state.step,
        best_step=state.best_step or state.step,
        ended=state.ended or "",
        loss=state.losses[-1][1],
        eval_loss=evaluations.get(state.best_step) if state.best is not None else None,
        base_eval_loss=evaluations.get(0),
        tokens=state.tokens,
        seconds=round(state.seconds, 1),
        bf16=state.bf16,
    )


def _digest(recipe: Recipe, files: ModelFiles, prepared: _Prepared) -> str:
    told = {
        **recipe.decisive(),
        "base": (files.name, files_key(files)),
        "learn": digest_of(prepared.learn),
        "judge": digest_of(prepared.judge),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _work_name(recipe: Recipe) -> str:
    """One for each name and folder that a pack is written into."""
    return f"{recipe.name}-{hashlib.sha256(str(recipe.out.resolve()).encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def _alone(work: Path, name: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"Another process is training {name}.", hint="Wait for it, or stop it first."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _require_packages() -> None:
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise NotSupported(
            f"Training needs {', '.join(missing)}.", hint="Run: pip install 'edgevlm[train]'"
        )


def _require_free(recipe: Recipe) -> None:
    """Raises UsageError where `out` can't be written, or is another adapter's folder."""
    out = recipe.out.absolute()
    nearest = next(folder for folder in (out, *out.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(
            f"{recipe.out} can't be written.", hint="Give a folder of your own as --out."
        )
    manifest = recipe.out / MANIFEST_NAME
    if manifest.is_file() and (other := read_manifest(manifest).name) != recipe.name:
        raise UsageError(
            f"{recipe.out} holds the adapter {other}.", hint="Give another folder as --out."
        )

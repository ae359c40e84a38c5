"""A model in memory: its family, its two parts on their runtimes, and what they have seen.

Any number of sessions may share one `Model`; each brings its own context.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from edgevlm.adapters.base import describe_base
from edgevlm.adapters.choice import Name, read_name
from edgevlm.adapters.resident import Resident, Residents
from edgevlm.adapters.store import AdapterStore
from edgevlm.cache import weights_key
from edgevlm.devices.threads import compute_threads
from edgevlm.engine.adapter import Adapters
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import (
    Embeddings,
    LanguageModel,
    LoadOptions,
    ModelFiles,
    VisionEncoder,
)
from edgevlm.engine.grammar import Grammars
from edgevlm.engine.placement import Placement
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import DeviceError, ModelError
from edgevlm.families import known_family, load_family
from edgevlm.families.base import BringsFamily, Family
from edgevlm.models.choice import choose
from edgevlm.models.shapes import check_fit
from edgevlm.models.store import Store
from edgevlm.runtimes import get_runtime
from edgevlm.settings import Settings, load_settings
from edgevlm.tower import VisionTower

if TYPE_CHECKING:
    from edgevlm.models.progress import Progress

BUILT_IN = "edgevlm-tiny"
DEFAULT = "smolvlm2-500m"
AUTO = "auto"
_NONE: Adapters = {}

_log = logging.getLogger("edgevlm")
Notice = Callable[[str], None]
Loaded = TypeVar("Loaded")


class Model:
    """Weights that sessions share. Made by `load_model`."""

    def __init__(
        self,
        files: ModelFiles,
        family: Family,
        vision: VisionEncoder,
        language: LanguageModel,
        load_ms: float = 0.0,
        weights: str = "",
    ) -> None:
        """`weights` tells these weights from others of that name; without it no answer is kept."""
        self.name = files.name
        self.files = files
        self.family = family
        self.vision = vision
        self.language = language
        self.load_ms = load_ms
        self.weights = weights
        self._residents = Residents(vision, language, files)
        self.tower = VisionTower(self.name, family, vision, language.d_model)

    @property
    def runtime(self) -> dict[str, str]:
        return {"vision": self.vision.runtime, "language": self.language.runtime}

    @property
    def quantization(self) -> str:
        return ", ".join(f"{part} {bits}" for part, bits in sorted(self.files.quantization.items()))

    @cached_property
    def fingerprint(self) -> str | None:
        """See `fingerprint_of`."""
        return fingerprint_of(self.files)

    @property
    def context_length(self) -> int:
        return self.language.context_length

    @cached_property
    def grammars(self) -> Grammars:
        """What makes the masks of structured output. Raises NotSupported."""
        return Grammars(self.family.tokenizer, self.language.n_vocab, self.family.stop_ids)

    def embed(self, image: ImageInput, cancel: Cancel, adapters: Adapters = _NONE) -> Embeddings:
        """See `VisionTower.embed`."""
        return self.tower.embed(image, cancel, adapters)

    def adapter(self, name: Name, settings: Settings | None = None) -> Resident:
        """An adapter in memory, by its name or folder: one for all sessions that ask.

        `settings` say where adapters are installed. It stays while somebody holds on to it,
        and beyond that as long as there is room among those used last. Safe for threads.
        Raises UnknownAdapter, AdapterCorrupt, NotSupported, and AdapterMismatch before any of
        its weights reach the runtime.
        """
        return self._residents.get(read_name(name), AdapterStore(settings or load_settings()))

    def close(self) -> None:
        self._residents.close()
        self.tower.close()
        self.language.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def fingerprint_of(files: ModelFiles) -> str | None:
    """16 hex digits of a model's name, edition, shapes and tokenizer: embeddings of one are no
    other's. The same on every runtime; None where the files don't tell."""
    base = describe_base(files)
    if base.fingerprint is None:
        return None
    text = f"{files.name} {base.edition} {base.fingerprint}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_model(
    name: str | None = None,
    *,
    runtime: str | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Model:
    """Fetch if need be, verify and load a model by catalog name, hub id or folder.

    `auto` takes the default of the catalog and, where that can't be had, the built-in
    model, saying so through `notice`. A model that was asked for by name is never
    replaced. Raises UnknownModel, ModelUnavailable, ModelCorrupt, NoSpace, DoesNotFit,
    NotSupported, UnknownRuntime.
    """
    return _either(name, runtime, settings, progress, notice, _load_both)


def load_tower(
    name: str | None = None,
    *,
    runtime: str | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> VisionTower:
    """`load_model`, for the half of it that sees: the decoder is somewhere else."""
    return _either(name, runtime, settings, progress, notice, _load_tower)


def _load_tower(files: ModelFiles, placement: Placement, options: LoadOptions) -> VisionTower:
    family = load_family(files.folder)
    encoder = get_runtime(placement.vision).load_vision(files, options)
    return VisionTower(files.name, family, encoder, None, fingerprint_of(files))


def _load_both(files: ModelFiles, placement: Placement, options: LoadOptions) -> Model:
    started = time.perf_counter()
    weights = weights_key(files)  # before they are read: what replaces them then has another
    family = known_family(files.folder)
    language = get_runtime(placement.language).load_language(files, options)
    try:
        vision = get_runtime(placement.vision).load_vision(files, options)
        try:
            family = family or _own_family(vision, files)
        except BaseException:
            vision.close()
            raise
    except BaseException:
        language.close()
        raise
    load_ms = (time.perf_counter() - started) * 1000
    return Model(files, family, vision, language, load_ms, weights)


def _either(
    name: str | None,
    runtime: str | None,
    settings: Settings | None,
    progress: Progress | None,
    notice: Notice | None,
    load: Callable[[ModelFiles, Placement, LoadOptions], Loaded],
) -> Loaded:
    """What `load` makes of the model that is asked for, or of the one that takes its place."""
    settings = settings or load_settings()
    name = name or settings.model
    runtime = runtime or settings.runtime
    notice = notice or _log.warning
    if name != AUTO:
        return _load(name, runtime, settings, progress, notice, load)
    try:
        return _load(DEFAULT, runtime, settings, progress, notice, load)
    except (ModelError, DeviceError) as error:
        loaded = _load(BUILT_IN, runtime, settings, progress, notice, load)
        reason = error.message.rstrip(".")
        notice(f"Using {BUILT_IN}, the small built-in model: {reason}.")
        return loaded


def _load(
    name: str,
    runtime: str,
    settings: Settings,
    progress: Progress | None,
    notice: Notice,
    load: Callable[[ModelFiles, Placement, LoadOptions], Loaded],
) -> Loaded:
    store = Store(settings)
    placement, sizes = choose(name, runtime, settings, store)
    context = check_fit(sizes, placement, settings, store.catalog)
    if context != settings.context_length:
        notice(f"{name} gets a context of {context} tokens, as long as memory allows now.")
    files = store.resolve(name, runtime=str(placement), progress=progress)
    options = LoadOptions(
        threads=settings.threads or compute_threads(),
        context_length=context,
        cache=settings.home / "cache",
    )
    return load(files, placement, options)


def _own_family(vision: VisionEncoder, files: ModelFiles) -> Family:
    """The family that a runtime makes of a model that has no file in `families/`."""
    if isinstance(vision, BringsFamily):
        return vision.own_family(files)
    return load_family(files.folder)  # says what is wrong

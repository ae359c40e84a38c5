"""A model in memory: its family, its two parts on their runtimes, and what they have seen.

Any number of sessions may share one `Model`; each brings its own context.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

from edgevlm.adapters.base import describe_base
from edgevlm.adapters.choice import Name, read_name
from edgevlm.adapters.resident import Resident, Residents
from edgevlm.adapters.store import AdapterStore
from edgevlm.devices.threads import compute_threads
from edgevlm.engine.adapter import Adapters, adapters_key, without_zeros
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import (
    Embeddings,
    LanguageModel,
    LoadOptions,
    ModelFiles,
    VisionEncoder,
    adaptable,
)
from edgevlm.engine.grammar import Grammars
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import DeviceError, ModelCorrupt, ModelError, NotSupported
from edgevlm.families import known_family, load_family
from edgevlm.families.base import BringsFamily, Family
from edgevlm.models.choice import choose
from edgevlm.models.shapes import check_fit
from edgevlm.models.store import Store
from edgevlm.runtimes import get_runtime
from edgevlm.settings import Settings, load_settings

if TYPE_CHECKING:
    from edgevlm.models.progress import Progress

BUILT_IN = "edgevlm-tiny"
DEFAULT = "smolvlm2-500m"
_FEATURE_BYTES = 64 * 2**20
# How often one that waits for its turn looks at its cancel.
_LOOK_S = 0.02
_NONE: Adapters = {}

_log = logging.getLogger("edgevlm")
Notice = Callable[[str], None]


class Model:
    """Weights that sessions share. Made by `load_model`."""

    def __init__(
        self,
        files: ModelFiles,
        family: Family,
        vision: VisionEncoder,
        language: LanguageModel,
        load_ms: float = 0.0,
    ) -> None:
        self.name = files.name
        self.files = files
        self.family = family
        self.vision = vision
        self.language = language
        self.load_ms = load_ms
        self._residents = Residents(vision, language, files)
        self._features: OrderedDict[Hashable, Embeddings] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def runtime(self) -> dict[str, str]:
        return {"vision": self.vision.runtime, "language": self.language.runtime}

    @property
    def quantization(self) -> str:
        return ", ".join(f"{part} {bits}" for part, bits in sorted(self.files.quantization.items()))

    @cached_property
    def fingerprint(self) -> str | None:
        """16 hex digits of name, edition, shapes and tokenizer: embeddings of one model are no
        other's. The same on every runtime; None where the files don't tell."""
        base = describe_base(self.files)
        if base.fingerprint is None:
            return None
        text = f"{self.name} {base.edition} {base.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def grammars(self) -> Grammars:
        """What makes the masks of structured output. Raises NotSupported."""
        return Grammars(self.family.tokenizer, self.language.n_vocab, self.family.stop_ids)

    def embed(self, image: ImageInput, cancel: Cancel, adapters: Adapters = _NONE) -> Embeddings:
        """Return the picture's embeddings float32 [n_tokens, d_model], encoded at most once
        with the same `adapters` of the vision encoder.

        Those that came with the picture are taken as they are. Raises ModelCorrupt where the
        encoder gives another number of tokens than the prompt has slots, Interrupted also
        while another session's picture is encoded, and what `VisionEncoder.encode` and
        `AdaptableVision.encode_with` raise.
        """
        adapters = without_zeros(adapters)
        if image.embeddings is not None:
            return self._given(image.embeddings, adapters)
        key = (image.key, adapters_key(adapters))
        with self._turn(cancel):
            known = self._features.get(key)
            if known is not None:
                self._features.move_to_end(key)
                return known
            features = self._encode(image, adapters, cancel)
            expected = (image.n_tokens, self.language.d_model)
            if features.shape != expected:
                raise ModelCorrupt(
                    f"{self.name} gave embeddings of shape {features.shape}"
                    f" for a picture of {expected}.",
                    hint="Its vision encoder does not belong to its decoder or its processor.",
                )
            self._features[key] = features
            self._forget_oldest()
            return features

    def adapter(self, name: Name, settings: Settings | None = None) -> Resident:
        """An adapter in memory, by its name or folder: one for all sessions that ask.

        `settings` say where adapters are installed. It stays while somebody holds on to it,
        and beyond that as long as there is room among those used last. Safe for threads.
        Raises UnknownAdapter, AdapterCorrupt, NotSupported, and AdapterMismatch before any of
        its weights reach the runtime.
        """
        return self._residents.get(read_name(name), AdapterStore(settings or load_settings()))

    def _given(self, embeddings: Embeddings, adapters: Adapters) -> Embeddings:
        if adapters:
            raise NotSupported(
                "An adapter of the vision tower can't change embeddings that were made elsewhere.",
                hint="Send the picture, or use an adapter of the decoder alone.",
            )
        return embeddings

    def _encode(self, image: ImageInput, adapters: Adapters, cancel: Cancel) -> Embeddings:
        if not adapters:
            return self.vision.encode(image, cancel)
        name = next(iter(adapters)).name
        return adaptable(self.vision, name).encode_with(image, adapters, cancel)

    @contextmanager
    def _turn(self, cancel: Cancel) -> Iterator[None]:
        while not self._lock.acquire(timeout=_LOOK_S):
            cancel.check()
        try:
            yield
        finally:
            self._lock.release()

    def _forget_oldest(self) -> None:
        held = sum(features.nbytes for features in self._features.values())
        while held > _FEATURE_BYTES and len(self._features) > 1:
            _, oldest = self._features.popitem(last=False)
            held -= oldest.nbytes

    def close(self) -> None:
        self._features.clear()
        self._residents.close()
        self.vision.close()
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
    settings = settings or load_settings()
    name = name or settings.model
    runtime = runtime or settings.runtime
    notice = notice or _log.warning
    if name != "auto":
        return _load(name, runtime, settings, progress, notice)
    try:
        return _load(DEFAULT, runtime, settings, progress, notice)
    except (ModelError, DeviceError) as error:
        model = _load(BUILT_IN, runtime, settings, progress, notice)
        reason = error.message.rstrip(".")
        notice(f"Using {BUILT_IN}, the small built-in model: {reason}.")
        return model


def _load(
    name: str, runtime: str, settings: Settings, progress: Progress | None, notice: Notice
) -> Model:
    store = Store(settings)
    placement, sizes = choose(name, runtime, settings, store)
    context = check_fit(sizes, placement, settings, store.catalog)
    if context != settings.context_length:
        notice(f"{name} gets a context of {context} tokens, as long as memory allows now.")
    files = store.resolve(name, runtime=str(placement), progress=progress)
    started = time.perf_counter()
    family = known_family(files.folder)
    options = LoadOptions(
        threads=settings.threads or compute_threads(),
        context_length=context,
        cache=settings.home / "cache",
    )
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
    return Model(files, family, vision, language, load_ms)


def _own_family(vision: VisionEncoder, files: ModelFiles) -> Family:
    """The family that a runtime makes of a model that has no file in `families/`."""
    if isinstance(vision, BringsFamily):
        return vision.own_family(files)
    return load_family(files.folder)  # says what is wrong

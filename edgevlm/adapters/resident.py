"""Adapters in the memory of one model, and the set of them that an answer is computed with."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from weakref import WeakValueDictionary

from edgevlm.adapters.base import Base, check_declared, check_fits, describe_base
from edgevlm.adapters.manifest import MANIFEST_NAME
from edgevlm.adapters.peft import WEIGHTS_NAME
from edgevlm.adapters.peft_config import CONFIG_NAME
from edgevlm.adapters.store import AdapterStore, InstalledAdapter
from edgevlm.engine.adapter import Adapters, LoadedAdapter, Lora
from edgevlm.engine.contract import LanguageModel, ModelFiles, VisionEncoder, adaptable
from edgevlm.errors import UsageError
from edgevlm.messages import ActiveAdapter

# Of adapters that no session holds, in float32: thirty or more of 8 MB.
KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Resident:
    """An adapter in the memory of a model: what it changes of the decoder and of the vision
    encoder, None where that is nothing.

    `n_bytes` are of its matrices in float32; `system` is the system prompt that it brings,
    `scale` what it is multiplied by unless somebody says otherwise, and `notice` what every
    answer with it carries.
    """

    name: str
    decoder: LoadedAdapter | None
    vision: LoadedAdapter | None
    n_bytes: int
    scale: float = 1.0
    system: str | None = None
    notice: str | None = None

    def close(self) -> None:
        for part in (self.decoder, self.vision):
            if part is not None:
                part.close()


class Residents:
    """The adapters in the memory of one model, each there once. Safe for threads.

    One stays as long as a session holds it, and after that while it is among those used last,
    up to `KEPT_BYTES`. One whose files have changed is another.
    """

    def __init__(self, vision: VisionEncoder, language: LanguageModel, files: ModelFiles) -> None:
        self._vision = vision
        self._language = language
        self._files = files
        self._alive: WeakValueDictionary[Hashable, Resident] = WeakValueDictionary()
        self._recent: OrderedDict[Hashable, Resident] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, store: AdapterStore) -> Resident:
        """The adapter of that name in `store`, or of that folder.

        One of another base is refused before any weight reaches the runtime. Raises what
        `AdapterStore.resolve` and `.load`, `check_fits`, `adaptable` and `load_adapter` of both
        parts of the model do.
        """
        while True:
            found = store.resolve(name)
            key = _key(found)
            with self._lock:
                resident = self._alive.get(key)
                if resident is None:
                    resident = self._load(found, partial(store.load, name))
                    # Replaced meanwhile, its manifest and its weights are of two versions.
                    if _key(store.resolve(name)) != key:
                        continue
                    self._alive[key] = resident
                self._recent[key] = resident
                self._recent.move_to_end(key)
                self._forget_oldest()
                return resident

    @cached_property
    def _base(self) -> Base:
        return describe_base(self._files)

    def _load(self, found: InstalledAdapter, read: Callable[[], Lora]) -> Resident:
        manifest = found.manifest
        check_declared(found.name, manifest.bases, self._base)
        lora = read()
        check_fits(lora, manifest.bases, self._base)
        # The vision encoder first, which more often can't.
        vision = adaptable(self._vision, lora.name).load_adapter(lora) if lora.vision else None
        return Resident(
            found.name,
            self._language.load_adapter(lora) if lora.decoder else None,
            vision,
            lora.n_bytes,
            1.0 if manifest.scale is None else manifest.scale,
            manifest.system,
            manifest.notice,
        )

    def _forget_oldest(self) -> None:
        held = sum(resident.n_bytes for resident in self._recent.values())
        while held > KEPT_BYTES and len(self._recent) > 1:
            _, oldest = self._recent.popitem(last=False)
            held -= oldest.n_bytes

    def close(self) -> None:
        with self._lock:
            for resident in self._alive.values():
                resident.close()
            self._alive.clear()
            self._recent.clear()


def _key(found: InstalledAdapter) -> Hashable:
    files = [found.folder / name for name in (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)]
    return (found.folder.resolve(), *map(_state, files))


def _state(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:  # it needn't be there, or is being replaced
        return None
    return status.st_size, status.st_mtime_ns


class ActiveSet:
    """Adapters and their scales, no two of one name: UsageError where two are."""

    def __init__(self, scales: Iterable[tuple[Resident, float | None]] = ()) -> None:
        self._scales = [
            (resident, resident.scale if scale is None else scale) for resident, scale in scales
        ]
        names = [resident.name for resident, _ in self._scales]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"There are two adapters {twice}.", hint="Give one of them.")

    def having(self, resident: Resident, scale: float | None) -> ActiveSet:
        """The set with one more, or with another scale for the one of that name."""
        others = [pair for pair in self._scales if pair[0].name != resident.name]
        return ActiveSet([*others, (resident, scale)])

    @property
    def decoder(self) -> Adapters:
        """What a context of the decoder adds."""
        return {r.decoder: scale for r, scale in self._scales if r.decoder is not None}

    @property
    def vision(self) -> Adapters:
        """What the vision encoder adds."""
        return {r.vision: scale for r, scale in self._scales if r.vision is not None}

    @property
    def told(self) -> tuple[ActiveAdapter, ...]:
        return tuple(ActiveAdapter(resident.name, scale) for resident, scale in self._scales)

    @property
    def notices(self) -> tuple[str, ...]:
        """What an answer with them carries, each line once."""
        lines = (resident.notice for resident, scale in self._scales if scale)
        return tuple(dict.fromkeys(line for line in lines if line))

    @property
    def system(self) -> str | None:
        """The system prompt that a single adapter brings; several would talk across."""
        if len(self._scales) != 1:
            return None
        resident, scale = self._scales[0]
        return resident.system if scale else None

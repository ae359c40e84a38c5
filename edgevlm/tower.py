"""The half of a model that sees: its encoder, its family's preprocessing, what it has seen."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from edgevlm.engine.adapter import Adapters, adapters_key, without_zeros
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, VisionEncoder, adaptable
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.families.base import Family

_FEATURE_BYTES = 64 * 2**20
# How often one that waits for its turn looks at its cancel.
_LOOK_S = 0.02
_NONE: Adapters = {}


class VisionTower:
    """Encodes each picture at most once for all who ask. Safe for threads.

    `d_model` is the width of the decoder that the embeddings are for, None where no decoder is
    here to say. `fingerprint` is the model's.
    """

    def __init__(
        self,
        name: str,
        family: Family,
        encoder: VisionEncoder,
        d_model: int | None,
        fingerprint: str | None = None,
    ) -> None:
        self.name = name
        self.family = family
        self.encoder = encoder
        self.fingerprint = fingerprint
        self._d_model = d_model
        self._features: OrderedDict[Hashable, Embeddings] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def runtime(self) -> str:
        return self.encoder.runtime

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
            return _given(image.embeddings, adapters)
        key = (image.key, adapters_key(adapters))
        with self._turn(cancel):
            known = self._features.get(key)
            if known is not None:
                self._features.move_to_end(key)
                return known
            features = self._encode(image, adapters, cancel)
            self._check(features, image)
            self._features[key] = features
            self._forget_oldest()
            return features

    def close(self) -> None:
        self._features.clear()
        self.encoder.close()

    def _encode(self, image: ImageInput, adapters: Adapters, cancel: Cancel) -> Embeddings:
        if not adapters:
            return self.encoder.encode(image, cancel)
        name = next(iter(adapters)).name
        return adaptable(self.encoder, name).encode_with(image, adapters, cancel)

    def _check(self, features: Embeddings, image: ImageInput) -> None:
        width = features.shape[-1] if self._d_model is None else self._d_model
        if features.shape != (image.n_tokens, width):
            raise ModelCorrupt(
                f"{self.name} gave embeddings of shape {features.shape}"
                f" for a picture of {(image.n_tokens, width)}.",
                hint="Its vision encoder does not belong to its decoder or its processor.",
            )

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


def _given(embeddings: Embeddings, adapters: Adapters) -> Embeddings:
    if adapters:
        raise NotSupported(
            "An adapter of the vision tower can't change embeddings that were made elsewhere.",
            hint="Send the picture, or use an adapter of the decoder alone.",
        )
    return embeddings

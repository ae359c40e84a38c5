"""The vision encoder of the three-file layout, projector included."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgevlm.engine.adapter import Adapters, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import NotSupported
from edgevlm.runtimes.onnx_adaptable import AdaptableGraph, vision_inputs
from edgevlm.runtimes.onnx_adapter import AdapterRoom, OnnxAdapter
from edgevlm.runtimes.onnx_names import vision_product
from edgevlm.runtimes.onnx_session import (
    Array,
    OrtValue,
    Session,
    as_array,
    refusal,
    require_role,
    to_ort,
)

# More at once take more memory and no less time: for SigLIP-base at 512 px and 8 bits, one
# tile took 700 ms and a peak of 539 MB, three took 785 ms each and 1,065 MB.
_TILES_AT_ONCE = 1
_PIXELS = "pixel_values"
_MASK = "pixel_attention_mask"
_FEATURES = "image_features"


class OnnxVisionEncoder:
    """`vision_encoder` of a model: `pixel_values` [batch, tiles, 3, H, W], or without the
    batch, and maybe `pixel_attention_mask`, to `image_features` [..., d_model]."""

    runtime = "onnx"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        self._session = Session(require_role(files, "vision_encoder"), threads=options.threads)
        path, inputs = self._session.path, self._session.inputs
        if _PIXELS not in inputs or _FEATURES not in self._session.outputs:
            raise refusal(path, f"it does not make {_FEATURES} from {_PIXELS}")
        strange = sorted(set(inputs) - {_PIXELS, _MASK})
        if strange:
            raise NotSupported(
                f"{path.name} wants an input {strange[0]!r}, which is not known here.",
                hint=f"Known: {_PIXELS} and {_MASK}.",
            )
        self._pixels = inputs[_PIXELS]
        if self._pixels.dtype.kind != "f" or len(self._pixels.shape) not in (4, 5):
            raise refusal(path, f"{_PIXELS} is {self._pixels.dtype} {self._pixels.shape}")
        self._batched = len(self._pixels.shape) == 5
        self._graph = AdaptableGraph(
            files.name, self._session, options.threads, vision_product, vision_inputs
        )

    def encode(self, image: ImageInput, cancel: Cancel) -> Embeddings:
        """Return float32 [image.n_tokens, d_model].

        Raises Interrupted, RuntimeFailed; NotSupported where the picture is padded and
        the graph takes no mask; ModelCorrupt where sizes or counts don't match.
        """
        return self.encode_with(image, {}, cancel)

    def load_adapter(self, lora: Lora) -> OnnxAdapter:
        """Keep an adapter's matrices for pictures (`AdaptableGraph`).

        Raises NotSupported, AdapterMismatch; ModelCorrupt, DoesNotFit, RuntimeFailed.
        """
        return self._graph.load(lora, lora.vision)

    def encode_with(self, image: ImageInput, adapters: Adapters, cancel: Cancel) -> Embeddings:
        """`encode`, with these adapters of this encoder. Raises AdapterMismatch for others,
        RuntimeFailed for closed ones and NotSupported for numbers beyond a graph's float16,
        beside what that does."""
        self._check_size(image)
        session, updates = self._graph.adding(adapters, AdapterRoom())
        step = self._pixels.shape[-4] or _TILES_AT_ONCE
        starts = range(0, len(image.pixel_values), step)
        rows = [
            self._encode_tiles(session, updates, image, slice(start, start + step), cancel)
            for start in starts
        ]
        features = np.concatenate(rows, dtype=np.float32, casting="same_kind")
        if len(features) != image.n_tokens:
            raise refusal(
                self._session.path,
                f"it made {len(features)} tokens of a picture with {image.n_tokens} slots",
            )
        return features

    def close(self) -> None:
        self._graph.close()

    def _encode_tiles(
        self,
        session: Session,
        updates: Mapping[str, OrtValue],
        image: ImageInput,
        tiles: slice,
        cancel: Cancel,
    ) -> Array:
        pixels = image.pixel_values[tiles].astype(self._pixels.dtype, copy=False)
        feeds = {_PIXELS: pixels}
        if _MASK in self._session.inputs:
            feeds[_MASK] = self._mask(image, tiles)
        values = {
            name: to_ort(array[None] if self._batched else array) for name, array in feeds.items()
        }
        # Of those 539 MB, 210 are activations that would be held until the next picture.
        last = tiles.stop >= len(image.pixel_values)
        (features,) = session.run([_FEATURES], {**values, **updates}, cancel, release=last)
        rows = as_array(features)
        return rows.reshape(-1, rows.shape[-1])

    def _mask(self, image: ImageInput, tiles: slice) -> Array:
        dtype = self._session.inputs[_MASK].dtype
        if image.pixel_mask is not None:
            return image.pixel_mask[tiles].astype(dtype, copy=False)
        count, _, height, width = image.pixel_values[tiles].shape
        return np.ones((count, height, width), dtype)

    def _check_size(self, image: ImageInput) -> None:
        size = image.pixel_values.shape[1:]
        wanted = self._pixels.shape[-3:]
        if any(w not in (None, s) for w, s in zip(wanted, size, strict=True)):
            raise refusal(
                self._session.path,
                f"it takes {_spelled(wanted)} pictures, the processor makes {_spelled(size)}",
            )
        if _MASK not in self._session.inputs and not _whole(image):
            raise NotSupported(
                f"{self._session.path.name} can't tell padding from picture.",
                hint=f"Use an export that takes {_MASK}.",
            )


def _whole(image: ImageInput) -> bool:
    return image.pixel_mask is None or bool(image.pixel_mask.all())


def _spelled(shape: tuple[int | None, ...]) -> str:
    return " x ".join("?" if size is None else str(size) for size in shape)

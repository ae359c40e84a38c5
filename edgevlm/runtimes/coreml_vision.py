"""The vision encoder as a Core ML package: one tile in, its embeddings out."""

from __future__ import annotations

import numpy as np

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import NotSupported
from edgevlm.runtimes import coreml_predict
from edgevlm.runtimes.coreml_package import PackageInfo, read_package, refusal, require_role

_PIXELS = "pixel_values"
_FEATURES = "image_features"


class CoreMLVisionEncoder:
    """`pixel_values` [1, 3, H, W] to `image_features` [1, tokens, d_model], on the Neural
    Engine, which leaves the GPU to the decoder."""

    runtime = "coreml"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        info = read_package(require_role(files, "vision_encoder"))
        self._path = info.path
        self._tile = _tile_shape(info)
        self._package = coreml_predict.Package(info.path, "CPU_AND_NE", options.cache)

    def encode(self, image: ImageInput, cancel: Cancel) -> Embeddings:
        """Return float32 [image.n_tokens, d_model].

        Stops between tiles. Raises Interrupted, RuntimeFailed; NotSupported where the
        picture is padded; ModelCorrupt where sizes or counts don't match.
        """
        self._check(image)
        rows = []
        for tile in image.pixel_values:
            cancel.check()
            outputs = self._package.predict({_PIXELS: tile[None].astype(np.float16)})
            rows.append(outputs[_FEATURES][0])
        cancel.check()
        features = np.concatenate(rows, dtype=np.float32, casting="same_kind")
        if len(features) != image.n_tokens:
            raise refusal(
                self._path,
                f"it made {len(features)} tokens of a picture with {image.n_tokens} slots",
            )
        return features

    def close(self) -> None:
        self._package.close()

    def _check(self, image: ImageInput) -> None:
        size = image.pixel_values.shape[1:]
        if size != self._tile:
            taken, made = (" x ".join(map(str, shape)) for shape in (self._tile, size))
            raise refusal(self._path, f"it takes {taken} pictures, the processor makes {made}")
        if image.pixel_mask is not None and not image.pixel_mask.all():
            raise NotSupported(
                f"{self._path.name} can't tell padding from picture.",
                hint="Run the vision encoder with another runtime.",
            )


def _tile_shape(info: PackageInfo) -> tuple[int, ...]:
    if set(info.inputs) != {_PIXELS} or _FEATURES not in info.outputs or info.states:
        raise refusal(info.path, f"it does not make {_FEATURES} from {_PIXELS}")
    shape = info.inputs[_PIXELS].shape
    if len(shape) != 4 or shape[0] != (1, 1) or any(low != high for low, high in shape):
        raise refusal(info.path, f"{_PIXELS} is not one tile of a fixed size")
    return tuple(size for size, _ in shape[1:])

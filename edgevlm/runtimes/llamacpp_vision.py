"""Vision encoders in GGUF (`mmproj`) through mtmd."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.families import is_known
from edgevlm.families.base import Family
from edgevlm.runtimes.llamacpp_checks import check_idefics3, check_tower
from edgevlm.runtimes.llamacpp_family import MtmdFamily
from edgevlm.runtimes.llamacpp_header import GgufHeader
from edgevlm.runtimes.llamacpp_mtmd import Mtmd
from edgevlm.runtimes.llamacpp_picture import MtmdPicture
from edgevlm.runtimes.llamacpp_stand_in import stand_in_vocabulary
from edgevlm.runtimes.llamacpp_weights import load_weights, require_role

# How far a normalised sample may be from one of 256 levels, in levels: float32 rounding is a
# thousandth of this, a mean or deviation of another model far more.
_LEVEL_TOLERANCE = 0.05
_IDEFICS3 = "idefics3"
_ANOTHER = "The vision encoder does not belong to the model's processor: fetch both again."


class LlamaCppVisionEncoder:
    """`vision_encoder` of a model, an mmproj file.

    Pictures that a family prepared come as normalised tiles. mtmd takes samples of 8 bits
    and normalises them itself, so the tiles are turned back to the bytes they came from; each
    has the encoder's own size, and mtmd neither resizes nor cuts it.
    """

    runtime = "llamacpp"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        path = require_role(files, "vision_encoder")
        with GgufHeader(path) as header:
            self._normalization = _Normalization.read(header)
            if is_known(files.folder):
                self.mtmd = _open_for_tiles(header, options)
                return
            check_tower(header)
        weights = load_weights(require_role(files, "decoder"))
        self.mtmd = Mtmd(path, weights, d_model=weights.d_model, threads=options.threads)

    def encode(self, image: ImageInput, cancel: Cancel) -> Embeddings:
        """Return float32 [image.n_tokens, d_model].

        Raises Interrupted, RuntimeFailed; NotSupported for pictures with padding;
        ModelCorrupt where sizes, counts or the normalisation don't match.
        """
        if isinstance(image.prepared, MtmdPicture):
            return image.prepared.encode(self.mtmd, cancel)
        if image.pixel_mask is not None and not image.pixel_mask.all():
            raise NotSupported(
                "llama.cpp can't tell padding from picture.", hint="Use runtime onnx."
            )
        tiles = map(self._normalization.undo, image.pixel_values)
        features = np.concatenate([self._encode_tile(tile, cancel) for tile in tiles])
        if len(features) != image.n_tokens:
            raise ModelCorrupt(
                f"{self.mtmd.path.name} made {len(features)} tokens of a picture with"
                f" {image.n_tokens} slots.",
                hint=_ANOTHER,
            )
        return features

    def own_family(self, files: ModelFiles) -> Family:
        """What mtmd and the decoder's file make of a model that has no file in `families/`.

        Raises ModelCorrupt, NotSupported, TemplateError.
        """
        weights = load_weights(require_role(files, "decoder"))
        return MtmdFamily(self.mtmd, weights, files.folder)

    def close(self) -> None:
        self.mtmd.close()

    def _encode_tile(self, rgb: NDArray[np.uint8], cancel: Cancel) -> Embeddings:
        with self.mtmd.chunks(rgb) as chunks:
            pictures = [chunk for chunk in chunks if chunk.is_image]
            # The tile, and maybe once more as the overview of a picture of one tile.
            return self.mtmd.encode(pictures[0], cancel)


def _open_for_tiles(header: GgufHeader, options: LoadOptions) -> Mtmd:
    """mtmd for pictures that a family here has cut: it needs nothing of the decoder."""
    kind = header.string("clip.projector_type")
    if kind != _IDEFICS3:
        raise NotSupported(
            f"{header.path.name} is a vision encoder of kind {kind!r}, not {_IDEFICS3!r}.",
            hint=_ANOTHER,
        )
    return Mtmd(
        header.path,
        stand_in_vocabulary(),
        d_model=check_idefics3(header),
        threads=options.threads,
        # The fewest that there can be are those of one tile: the picture as it is.
        image_tokens=1,
    )


@dataclass(frozen=True, slots=True)
class _Normalization:
    """What mtmd does to samples of 8 bits: (sample / 255 - mean) / std, channel by channel."""

    file: str
    side: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @classmethod
    def read(cls, header: GgufHeader) -> _Normalization:
        mean, std = (
            np.array(header.numbers(f"clip.vision.image_{name}", 3), np.float32)[:, None, None]
            for name in ("mean", "std")
        )
        if not std.all():
            raise header.corrupt("it divides by a zero in clip.vision.image_std")
        return cls(header.path.name, header.count("clip.vision.image_size"), mean, std)

    def undo(self, tile: NDArray[np.float32]) -> NDArray[np.uint8]:
        """float32 [3, side, side] to uint8 [side, side, 3]. Raises ModelCorrupt."""
        if tile.shape != (3, self.side, self.side):
            raise ModelCorrupt(
                f"{self.file} takes pictures of {self.side} x {self.side} pixels,"
                f" the processor makes {tile.shape[1]} x {tile.shape[2]}.",
                hint=_ANOTHER,
            )
        samples = (tile * self.std + self.mean) * np.float32(255)
        levels = np.rint(samples)
        off = float(np.abs(samples - levels).max())
        # Turned round, since nothing is above or below what is not a number.
        if not (off <= _LEVEL_TOLERANCE and levels.min() >= 0 and levels.max() <= 255):
            raise ModelCorrupt(
                f"{self.file} and the processor normalise pictures differently.", hint=_ANOTHER
            )
        return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))

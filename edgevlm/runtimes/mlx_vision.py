"""Vision tower and projector of an MLX model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import ModelCorrupt, NotSupported, RuntimeFailed
from edgevlm.runtimes.mlx_loading import load
from edgevlm.runtimes.mlx_thread import on_mlx_thread, on_mlx_thread_until


class MlxVisionEncoder:
    """`vision_model` and `connector` of an Idefics3 or SmolVLM: tiles to embeddings."""

    runtime = "mlx"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        self._tower: Any = None
        self._connector: Any = None
        on_mlx_thread(self._load, files)

    def encode(self, image: ImageInput, cancel: Cancel) -> Embeddings:
        """Return float32 [image.n_tokens, d_model].

        Raises Interrupted, RuntimeFailed; NotSupported where the picture is padded, and
        ModelCorrupt where sizes or counts don't match.
        """
        if image.pixel_mask is not None and not image.pixel_mask.all():
            raise NotSupported(
                "MLX can't tell padding from picture.", hint="Use a model with full tiles."
            )
        size = image.pixel_values.shape[1:]
        if size != self._size:
            raise ModelCorrupt(
                f"The vision encoder takes {self._size} pictures, the processor makes {size}.",
                hint="Its processor belongs to another model: fetch the model again.",
            )
        return on_mlx_thread_until(cancel, self._encode, image, cancel)

    def close(self) -> None:
        self._tower = self._connector = None

    def _load(self, files: ModelFiles) -> None:
        loaded = load(files)
        model = loaded.model
        if not hasattr(model, "vision_model") or not hasattr(model, "connector"):
            raise NotSupported(
                f"{files.name} has no vision encoder that MLX runs.",
                hint="Run its vision encoder on another runtime.",
            )
        self._tower = model.vision_model
        self._connector = model.connector
        vision = model.config.vision_config
        self._size = (vision.num_channels, vision.image_size, vision.image_size)
        self._dtype = self._tower.embeddings.patch_embedding.weight.dtype
        # mlx-vlm leaves this one at MLX's default.
        self._tower.post_layernorm.eps = vision.layer_norm_eps
        loaded.materialise(self._tower, self._connector)

    def _encode(self, image: ImageInput, cancel: Cancel) -> Embeddings:
        if self._tower is None:
            raise RuntimeFailed("The model was closed.", hint="Load it again.")
        rows = [self._encode_tile(tile, cancel) for tile in image.pixel_values]
        mx.clear_cache()
        return np.concatenate(rows)

    def _encode_tile(self, tile: np.ndarray[Any, Any], cancel: Cancel) -> Embeddings:
        """[3, H, W] to [tokens, d_model], a layer computed at a time, the next queued."""
        cancel.check()
        pixels = mx.array(tile.transpose(1, 2, 0)[None]).astype(self._dtype)
        pooled, _, states = self._tower(pixels, output_hidden_states=True)
        for state, following in pairwise(states):
            mx.async_eval(following)
            mx.eval(state)
            cancel.check()
        features = self._connector(pooled.astype(self._dtype))[0]
        return np.array(features.astype(mx.float32), dtype=np.float32)

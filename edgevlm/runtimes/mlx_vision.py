"""Vision tower and projector of an MLX model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from edgevlm.engine.adapter import Adapters, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import ModelCorrupt, NotSupported, RuntimeFailed
from edgevlm.runtimes.mlx_adapter import AdaptableModules, MlxAdapter, standing_in, vision_modules
from edgevlm.runtimes.mlx_loading import load
from edgevlm.runtimes.mlx_thread import on_mlx_thread, on_mlx_thread_until


class MlxVisionEncoder:
    """`vision_model` and `connector` of an Idefics3 or SmolVLM: tiles to embeddings."""

    runtime = "mlx"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        self._name = files.name
        self._tower: Any = None
        self._connector: Any = None
        self._adaptable: AdaptableModules | None = None
        on_mlx_thread(self._load, files)

    def encode(self, image: ImageInput, cancel: Cancel) -> Embeddings:
        """Return float32 [image.n_tokens, d_model].

        Raises Interrupted, RuntimeFailed; NotSupported where the picture is padded, and
        ModelCorrupt where sizes or counts don't match.
        """
        return self.encode_with(image, {}, cancel)

    def load_adapter(self, lora: Lora) -> MlxAdapter:
        """Raises NotSupported, AdapterMismatch."""
        return on_mlx_thread(lambda: self._modules().load(lora, lora.vision))

    def encode_with(self, image: ImageInput, adapters: Adapters, cancel: Cancel) -> Embeddings:
        """`encode`, with these adapters of this encoder. Raises AdapterMismatch for others, and
        RuntimeFailed for closed ones, beside what that does."""
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
        return on_mlx_thread_until(cancel, self._encode, image, adapters, cancel)

    def close(self) -> None:
        self._tower = self._connector = self._adaptable = None

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

    def _modules(self) -> AdaptableModules:
        """What adapters need to know of both parts; found out when the first one comes."""
        if self._adaptable is None:
            parts = {"vision_model": self._opened(), "connector": self._connector}
            blank = np.zeros(self._size, np.float32)
            self._adaptable = vision_modules(
                f"the vision encoder of {self._name}",
                parts,
                lambda: self._project(self._states(blank)[0]),
            )
        return self._adaptable

    def _encode(self, image: ImageInput, adapters: Adapters, cancel: Cancel) -> Embeddings:
        self._opened()
        stand_ins = self._modules().stand_ins(adapters) if adapters else ()
        with standing_in(stand_ins):
            rows = [self._encode_tile(tile, cancel) for tile in image.pixel_values]
        mx.clear_cache()
        return np.concatenate(rows)

    def _encode_tile(self, tile: np.ndarray[Any, Any], cancel: Cancel) -> Embeddings:
        """[3, H, W] to [tokens, d_model], a layer computed at a time, the next queued."""
        cancel.check()
        pooled, states = self._states(tile)
        for state, following in pairwise(states):
            mx.async_eval(following)
            mx.eval(state)
            cancel.check()
        return np.array(self._project(pooled).astype(mx.float32), dtype=np.float32)

    def _states(self, tile: np.ndarray[Any, Any]) -> tuple[mx.array, Sequence[mx.array]]:
        """What leaves the tower for a tile, and what goes into and out of its layers: built, but
        not computed."""
        pixels = mx.array(tile.transpose(1, 2, 0)[None]).astype(self._dtype)
        pooled, _, states = self._tower(pixels, output_hidden_states=True)
        return pooled, states

    def _project(self, pooled: mx.array) -> mx.array:
        features: mx.array = self._connector(pooled.astype(self._dtype))[0]
        return features

    def _opened(self) -> Any:
        if self._tower is None:
            raise RuntimeFailed("The model was closed.", hint="Load it again.")
        return self._tower

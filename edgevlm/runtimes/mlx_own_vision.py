"""Pictures of architectures that only mlx-vlm knows, by its own model classes."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from edgevlm.engine.adapter import Adapters, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, LoadOptions, ModelFiles
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import NotSupported, RuntimeFailed
from edgevlm.families.base import Family
from edgevlm.runtimes.mlx_adapter import AdaptableModules, MlxAdapter, standing_in, vision_modules
from edgevlm.runtimes.mlx_config import Config
from edgevlm.runtimes.mlx_family import MlxFamily
from edgevlm.runtimes.mlx_loading import embeddings_owner, find_architecture, load
from edgevlm.runtimes.mlx_own_picture import PreparedPicture, Preprocessor, image_token_id
from edgevlm.runtimes.mlx_thread import on_mlx_thread, on_mlx_thread_until

# What a model may say of a prompt beside its embeddings, and we know by ourselves.
_KNOWN = ("inputs_embeds", "position_ids", "rope_deltas")


class MlxOwnVisionEncoder:
    """`get_input_embeddings` of an mlx-vlm model, asked for the rows of one picture."""

    runtime = "mlx"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        self._name = files.name
        self._model: Any = None
        self._config: Config = {}
        self._adaptable: AdaptableModules | None = None
        on_mlx_thread(self._load, files)

    def own_family(self, files: ModelFiles) -> Family:
        """Raises ModelCorrupt, NotSupported, TemplateError."""
        return MlxFamily(str(self._config["model_type"]), self._folder, self._preprocessor)

    def encode(self, image: ImageInput, cancel: Cancel) -> Embeddings:
        """Return float32 [image.n_tokens, d_model].

        A cancelled picture is computed to its end behind the caller's back, as its layers
        are the model's own business. Raises Interrupted, RuntimeFailed, and NotSupported
        for models whose pictures are more than rows of embeddings.
        """
        return self.encode_with(image, {}, cancel)

    def load_adapter(self, lora: Lora) -> MlxAdapter:
        """Raises NotSupported, AdapterMismatch."""
        picture = self._preprocessor.prepare(np.zeros((64, 64, 3), np.uint8))
        return on_mlx_thread(lambda: self._modules(picture).load(lora, lora.vision))

    def encode_with(self, image: ImageInput, adapters: Adapters, cancel: Cancel) -> Embeddings:
        """`encode`, with these adapters of this encoder. Raises AdapterMismatch for others, and
        RuntimeFailed for closed ones, beside what that does."""
        picture = image.prepared
        if not isinstance(picture, PreparedPicture):
            raise RuntimeFailed(
                "A picture was prepared for another model.", hint="Prepare it with this one."
            )
        return on_mlx_thread_until(cancel, self._encode, picture, adapters)

    def close(self) -> None:
        self._model = self._adaptable = None

    @cached_property
    def _preprocessor(self) -> Preprocessor:
        architecture = on_mlx_thread(find_architecture, self._config)
        return Preprocessor(self._folder, architecture, self._config)

    def _load(self, files: ModelFiles) -> None:
        loaded = load(files)
        self._folder, self._config, self._model = loaded.folder, loaded.config, loaded.model
        self._image_id = image_token_id(loaded.config)
        # The model joins the rows to embeddings of text: no table of them is read for that.
        owner = embeddings_owner(loaded)
        owner.embed_tokens = _Blank(owner.embed_tokens)
        parts = [part for name, part in loaded.model.children().items() if name != "language_model"]
        loaded.materialise(*parts)

    def _modules(self, picture: PreparedPicture) -> AdaptableModules:
        """What adapters need to know of the tower, which some picture shows."""
        if self._adaptable is None:
            parts = {
                name: part
                for name, part in self._opened().children().items()
                if name != "language_model"
            }
            self._adaptable = vision_modules(
                f"the vision encoder of {self._name}", parts, lambda: self._rows(picture)
            )
        return self._adaptable

    def _encode(self, picture: PreparedPicture, adapters: Adapters) -> Embeddings:
        self._opened()
        stand_ins = self._modules(picture).stand_ins(adapters) if adapters else ()
        with standing_in(stand_ins):
            features = np.array(self._rows(picture).astype(mx.float32), dtype=np.float32)
        mx.clear_cache()
        return features

    def _rows(self, picture: PreparedPicture) -> mx.array:
        """Embeddings [n_tokens, d_model], as yet to be computed."""
        arrays = {name: mx.array(array) for name, array in picture.arrays.items()}
        ids = mx.full((1, picture.n_tokens), self._image_id, mx.int32)
        made = self._model.get_input_embeddings(ids, arrays.pop("pixel_values"), **arrays)
        more = [name for name, value in made.to_dict().items() if value is not None]
        if unknown := sorted(set(more) - set(_KNOWN)):
            raise NotSupported(
                f"Pictures of this model need {unknown[0]}, which this runtime does not take.",
                hint="Run the model with llama.cpp.",
            )
        rows: mx.array = made.inputs_embeds[0]
        return rows

    def _opened(self) -> Any:
        if self._model is None:
            raise RuntimeFailed("The model was closed.", hint="Load it again.")
        return self._model


class _Blank:
    """Looks up nothing: zeros [..., d_model]."""

    def __init__(self, table: Any) -> None:
        self._width = table.weight.shape[-1]
        if hasattr(table, "scales"):
            self._width = table.scales.shape[-1] * table.group_size
        self._dtype = table.scales.dtype if hasattr(table, "scales") else table.weight.dtype

    def __call__(self, ids: mx.array) -> mx.array:
        return mx.zeros((*ids.shape, self._width), self._dtype)

"""From a folder to a model of mlx-vlm's classes, its weights still in their files.

MLX reads a weight when it is first computed with, so each part of a model that is loaded
for itself materialises its own weights and not the other's. Call this on the MLX thread.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx

from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import EdgeVLMError, ModelCorrupt, NotSupported
from edgevlm.runtimes.mlx_config import Config, corrupt, model_folder, read_config, text_config
from edgevlm.runtimes.mlx_thread import limit_memory, on_metal, one_line

_INDEX = "model.safetensors.index.json"
# Beside a model in its folder, and no part of it.
_OTHER_WEIGHTS = ("consolidated", "adapter")
_TINY = "edgevlm_tiny"


@dataclass(frozen=True, slots=True)
class Loaded:
    """`model` is mlx-vlm's: `language_model`, and beside it what makes picture embeddings."""

    folder: Path
    config: Config
    model: Any

    def materialise(self, *parts: Any) -> None:
        """Read the weights of these modules into memory. Raises DoesNotFit."""
        parameters = [part.parameters() for part in parts]
        limit_memory(sum(_n_bytes(tree) for tree in parameters))
        mx.eval(parameters)


def load(files: ModelFiles) -> Loaded:
    """`load_folder`, in the float type that suits this machine. Raises what that does."""
    loaded = load_folder(model_folder(files))
    if not on_metal():
        loaded.model.set_dtype(mx.float32)
    return loaded


def load_folder(folder: Path) -> Loaded:
    """Raises ModelCorrupt naming a tensor that is missing, superfluous or misshapen, and
    NotSupported for an architecture that mlx-vlm does not have."""
    config = read_config(folder)
    architecture = find_architecture(config)
    with _wrong_files(folder):
        model = _build(architecture, config)
        weights = _sanitized(architecture, model, _read_weights(folder))
        _tie_head(weights, text_config(config), config)
        _install(model, config, weights, folder)
    model.eval()
    return Loaded(folder, config, model)


def find_architecture(config: Config) -> Any:
    """The module of mlx-vlm, or ours, that has the classes of a model type."""
    if config["model_type"] == _TINY:
        return importlib.import_module("edgevlm.runtimes.mlx_tiny")
    with without_patches():
        from mlx_vlm.utils import get_model_type

        name = get_model_type(config)
        if not name or not name.isidentifier() or find_spec(f"mlx_vlm.models.{name}") is None:
            raise _unknown(config)
        module = importlib.import_module(f"mlx_vlm.models.{name}")
    if not hasattr(module, "Model") or not hasattr(module, "ModelConfig"):
        raise _unknown(config)
    return module


@contextmanager
def without_patches() -> Iterator[None]:
    """mlx-vlm's models replace `AutoProcessor.from_pretrained` of transformers by one that
    trusts remote code; whoever uses transformers beside us keeps the original."""
    from transformers import AutoProcessor

    original = AutoProcessor.__dict__["from_pretrained"]
    try:
        yield
    finally:
        setattr(AutoProcessor, "from_pretrained", original)  # noqa: B010


def _build(architecture: Any, config: Config) -> Any:
    """As `mlx_vlm.utils.load_model` does it. Parameters are drawn when first used: never."""
    from mlx_vlm.utils import update_module_configs

    config.setdefault("text_config", config.pop("llm_config", {}))
    for part in ("vision_config", "audio_config"):
        config.setdefault(part, {})
    model_config = architecture.ModelConfig.from_dict(config)
    parts = ["text", "vision", "perceiver", "projector", "audio"]
    model_config = update_module_configs(model_config, architecture, config, parts)
    return architecture.Model(model_config)


def _read_weights(folder: Path) -> dict[str, mx.array]:
    weights: dict[str, mx.array] = {}
    for path in weight_files(folder):
        weights.update(mx.load(str(path)))
    for name, array in weights.items():
        if any(size < 0 for size in array.shape):
            raise ModelCorrupt(f"The tensor {name} has the shape {array.shape}.")
    return weights


def weight_files(folder: Path) -> list[Path]:
    """The shards that the index names, else every safetensors file. Raises ModelCorrupt."""
    index = folder / _INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        return [path for path in files if not path.name.startswith(_OTHER_WEIGHTS)]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        shards = [folder / name for name in sorted(names)]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(index, "it names no files") from error
    for path in shards:
        if path.parent != folder or path.suffix != ".safetensors":
            raise corrupt(index, f"it names {path.name[:80]!r}, which is no file beside it")
        if not path.is_file():
            raise ModelCorrupt(f"{folder} lacks {path.name}.", hint="Fetch the model again.")
    return shards


def _sanitized(architecture: Any, model: Any, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Names and axes of transformers turned into mlx-vlm's."""
    from mlx_vlm.utils import sanitize_weights

    weights = sanitize_weights(model, weights)
    for name, part in (("VisionModel", "vision_config"), ("LanguageModel", "text_config")):
        if hasattr(architecture, name) and hasattr(model.config, part):
            weights = sanitize_weights(
                getattr(architecture, name), weights, getattr(model.config, part)
            )
    return weights


def _tie_head(weights: dict[str, mx.array], text: Config, config: Config) -> None:
    """mlx-vlm's Llama decoder has a head of its own, which many checkpoints leave out for
    being the embeddings."""
    tied = any(part.get("tie_word_embeddings") for part in (config, text))
    head = "language_model.lm_head"
    if not tied or f"{head}.weight" in weights or config["model_type"] not in _WITH_HEAD:
        return
    for kind in ("weight", "scales", "biases"):
        if f"language_model.embed_tokens.{kind}" in weights:
            weights[f"{head}.{kind}"] = weights[f"language_model.embed_tokens.{kind}"]
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and "language_model.embed_tokens" in quantization:
        quantization[head] = quantization["language_model.embed_tokens"]


_WITH_HEAD = (_TINY, "idefics3", "smolvlm")


def _install(model: Any, config: Config, weights: dict[str, mx.array], folder: Path) -> None:
    from mlx_vlm.utils import load_model_weights

    if "quantization" not in config and config.get("quantization_config") is not None:
        raise NotSupported(
            f"{folder / 'config.json'} has weights quantised for another runtime.",
            hint="Use the model's MLX edition, or convert the original to MLX.",
        )
    load_model_weights(model, config, weights, folder, lazy=True, strict=True)


@contextmanager
def _wrong_files(folder: Path) -> Iterator[None]:
    """What comes of files that contradict themselves, in Python's and MLX's words."""
    try:
        yield
    except (EdgeVLMError, MemoryError):
        raise
    except Exception as error:
        raise ModelCorrupt(
            f"The MLX model in {folder} contradicts itself: {one_line(error)}.",
            hint="Fetch the model again, or convert it anew.",
        ) from error


def embeddings_owner(loaded: Loaded) -> Any:
    """The module whose `embed_tokens` is the table of token embeddings. Raises NotSupported."""
    language = loaded.model.language_model
    for owner in (language, getattr(language, "model", language)):
        if hasattr(owner, "embed_tokens"):
            return owner
    raise NotSupported(
        f"MLX models of type {loaded.config['model_type']!r} are not supported.",
        hint="Their decoder has no table of token embeddings: use another runtime.",
    )


def _unknown(config: Config) -> NotSupported:
    return NotSupported(
        f"MLX has no model of type {config['model_type']!r}.",
        hint="Update it: pip install --upgrade mlx-vlm",
    )


def _n_bytes(tree: Any) -> int:
    from mlx.utils import tree_flatten

    return sum(array.nbytes for _, array in tree_flatten(tree))

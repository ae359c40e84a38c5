"""config.json of an MLX model: read, and refused where mlx-vlm would misread it in silence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeAlias

from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.errors import ModelCorrupt, NotSupported

Config: TypeAlias = dict[str, Any]

_AGAIN = "Fetch the model again, or check that the folder is complete."
_LONGEST_CONTEXT = 2**20
_MOST_LAYERS = 1000
# What transformers' `LlamaConfig` and `Idefics3VisionConfig` take for a field that is left out;
# mlx-vlm takes what some one model has there.
_TEXT = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
_VISION = {
    "model_type": "idefics3_vision",
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
    "layer_norm_eps": 1e-6,
}
# What MLX has kernels for, in one mode or another.
_QUANTIZATION = {"bits": (1, 2, 3, 4, 5, 6, 8), "group_size": (16, 32, 64, 128)}
# Architectures whose decoder's fields mlx-vlm reads at the top, where they once were.
_FLAT_TYPES = ("qwen2_vl", "qwen2_5_vl")
# Architectures whose decoder in mlx-vlm is a plain Llama beside a SigLIP tower.
LLAMA_TYPES = ("edgevlm_tiny", "idefics3", "smolvlm")


def model_folder(files: ModelFiles) -> Path:
    """The folder of the weights and their config.json. Raises ModelCorrupt."""
    weights = files.roles.get("weights")
    if weights is None:
        raise ModelCorrupt(
            f"{files.name} has no weights for MLX.",
            hint="A model for this runtime has config.json and *.safetensors in one folder.",
        )
    return weights.parent


def read_config(folder: Path) -> Config:
    """`config.json` as mlx-vlm takes it. Raises ModelCorrupt, NotSupported.

    Python that a checkpoint brings is never run: `model_file` is refused, as weights made for
    other code mean nothing without it, and `auto_map` is dropped.
    """
    path = folder / "config.json"
    try:
        config: Config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{path} can't be read: {error}.", hint=_AGAIN) from error
    if not isinstance(config, dict):
        raise corrupt(path, "it is not a JSON object")
    if config.get("model_file") is not None:
        raise NotSupported(
            f"{path} wants Python code of its own to be run (model_file).",
            hint="Code from a model is never run: use a model whose type MLX knows.",
        )
    config.pop("auto_map", None)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", model_type):
        raise corrupt(path, "it names no model_type")
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part, {}), dict):
            raise corrupt(path, f"its {part} is no object")
    if model_type in _FLAT_TYPES:
        config = _flattened(config)
    _settle_rope(path, text_config(config))
    if config.get("quantization") is not None:
        _check_quantization(path, config["quantization"])
    if model_type in LLAMA_TYPES:
        _check_llama(path, config)
    return config


def text_config(config: Config) -> Config:
    """The decoder's part, which some models write at the top."""
    text: Config = config.get("text_config") or config
    return text


def context_length(folder: Path, config: Config, options: LoadOptions) -> int:
    """The model's own limit, capped by the options. Raises ModelCorrupt."""
    own = text_config(config).get("max_position_embeddings")
    if type(own) is not int or not 1 <= own <= _LONGEST_CONTEXT:
        raise corrupt(folder / "config.json", f"max_position_embeddings is {str(own)[:40]}")
    return min(own, options.context_length or own)


def rope_fields(config: Config) -> Config:
    """What scales the rotary embedding, by the old name or the new."""
    text = text_config(config)
    fields = text.get("rope_parameters") or text.get("rope_scaling") or {}
    return fields if isinstance(fields, dict) else {}


def corrupt(path: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{path.name} is not what it should be: {what}.", hint=_AGAIN)


def _settle_rope(path: Path, text: Config) -> None:
    """transformers 5 writes `rope_parameters`; mlx-vlm reads `rope_theta`, and without it
    takes 1e6 for what most models mean by nothing at all."""
    parameters = text.get("rope_parameters")
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise corrupt(path, "its rope_parameters is no object")
    theta = parameters.get("rope_theta", text.get("rope_theta"))
    if theta is None and not any(isinstance(each, dict) for each in parameters.values()):
        raise corrupt(path, "its rope_parameters have no rope_theta")
    if theta is not None:
        text["rope_theta"] = theta


def _check_quantization(path: Path, quantization: object) -> None:
    """MLX divides by them before it asks what they are. Of a module that is quantised otherwise
    there is an object of its own, by its name."""
    if not isinstance(quantization, dict):
        raise corrupt(path, "its quantization is no object")
    others = [own for own in quantization.values() if isinstance(own, dict)]
    for each in (quantization, *others):
        for name, known in _QUANTIZATION.items():
            value = each.get(name)
            if type(value) is not int or value not in known:
                raise corrupt(path, f"its quantization has the {name} {str(value)[:40]}")


def _flattened(config: Config) -> Config:
    """As these models were released before transformers 5."""
    text: Config = config.pop("text_config", {})
    rope = text.pop("rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope:
        theta = rope.get("rope_theta")
        text |= {} if theta is None else {"rope_theta": theta}
        text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    vision = {**config.get("vision_config", {}), "model_type": config["model_type"]}
    return {**text, **config, "vision_config": vision}


def _check_llama(path: Path, config: Config) -> None:
    text, vision = text_config(config), config.setdefault("vision_config", {})
    for part, defaults in ((text, _TEXT), (vision, _VISION)):
        for name, value in defaults.items():
            part.setdefault(name, value)
    text.setdefault("num_key_value_heads", text["num_attention_heads"])
    rope = rope_fields(config)
    known = {
        "decoder type": (text["model_type"], "llama"),
        "decoder activation": (text.get("hidden_act", "silu"), "silu"),
        "rotary embedding": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "vision activation": (vision.get("hidden_act", "gelu_pytorch_tanh"), "gelu_pytorch_tanh"),
    }
    for what, (found, wanted) in known.items():
        if found != wanted:
            raise NotSupported(
                f"The {what} {str(found)[:40]!r} of this model is not known to MLX.",
                hint=f"Known: {wanted}. Run the model with another runtime.",
            )
    theta = text["rope_theta"]
    if type(theta) not in (int, float) or not 1 <= theta <= 1e12:
        raise corrupt(path, f"its rope_theta is {str(theta)[:40]}")
    for part in (text, vision):
        layers = part["num_hidden_layers"]
        if type(layers) is not int or not 1 <= layers <= _MOST_LAYERS:
            raise corrupt(path, f"num_hidden_layers is {str(layers)[:40]}")

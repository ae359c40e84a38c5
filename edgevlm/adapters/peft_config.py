"""What an `adapter_config.json` of PEFT says of ranks, scales and targets.

Meanings are those of PEFT 0.21's `LoraConfig`, `get_pattern_key` and
`check_target_module_exists`. A setting that changes what an adapter computes, and that isn't
read here, is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from edgevlm.adapters.json_fields import JsonFields, shown
from edgevlm.adapters.patterns import Effort, Pattern
from edgevlm.errors import NotSupported

CONFIG_NAME = "adapter_config.json"
MAX_RANK = 512
_MOST_BYTES = 2**20
_MOST_PATTERNS = 4096
_LARGEST_ALPHA = 1e6

_READ = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("bias", "fan_in_fan_out", "init_lora_weights", "base_model_name_or_path"),
    )
)
# What only a training run, or the search for the base, goes by.
_HARMLESS = frozenset(
    (
        *("auto_mapping", "peft_version", "task_type", "revision", "inference_mode"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
        *("lora_dropout", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
    )
)
_NAMED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules that are saved whole",
    "trainable_token_indices": "trained token embeddings",
    "layer_replication": "replicated layers",
    "lora_bias": "biases",
    "target_parameters": "parameters that are no linear module",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QA-LoRA",
}
# These leave the base's weights alone; PiSSA, OLoRA, CorDA and LoftQ train beside changed ones.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_SAVE_PLAIN = "Merge it into an ordinary LoRA (bias none) and save that with PEFT."

_PLAIN_KEY = re.compile(r"[\w.]+")
_MOST_LAYERS_PATTERNS = 20
_Matcher: TypeAlias = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """Modules are named as in the checkpoint, `model.text_model.layers.0.self_attn.q_proj`.

    `base` is what the training run loaded: a hub id, or a path of that machine.
    """

    base: str | None
    rslora: bool
    _rank: int
    _alpha: float
    _ranks: tuple[tuple[_Matcher, int], ...]
    _alphas: tuple[tuple[_Matcher, float], ...]
    _targets: _Matcher

    def rank_of(self, module: str) -> int:
        return next((rank for matches, rank in self._ranks if matches(module)), self._rank)

    def scaling_of(self, module: str) -> float:
        """What the update is multiplied by: alpha / r, with rsLoRA alpha / sqrt(r)
        (Kalajdzievski 2023, arXiv:2312.03732)."""
        alpha = next((alpha for matches, alpha in self._alphas if matches(module)), self._alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether PEFT would put an update there."""
        return self._targets(module)


def read_config(folder: Path) -> PeftConfig:
    """Read `adapter_config.json`. Raises AdapterCorrupt, or NotSupported for what is no
    plain LoRA."""
    file = JsonFields.read(folder / CONFIG_NAME, _MOST_BYTES)
    _require_plain_lora(file)
    effort = Effort()
    base = file.fields.get("base_model_name_or_path")
    return PeftConfig(
        base=file.text("base_model_name_or_path", 1000) if base else None,
        rslora=file.flag("use_rslora"),
        _rank=file.whole("r", 1, MAX_RANK),
        _alpha=file.number("lora_alpha", _LARGEST_ALPHA),
        _ranks=tuple(
            (_key_matcher(file, key, effort), file.as_whole("rank_pattern", rank, 1, MAX_RANK))
            for key, rank in file.mapping("rank_pattern", _MOST_PATTERNS).items()
        ),
        _alphas=tuple(
            (
                _key_matcher(file, key, effort),
                file.as_number("alpha_pattern", alpha, _LARGEST_ALPHA),
            )
            for key, alpha in file.mapping("alpha_pattern", _MOST_PATTERNS).items()
        ),
        _targets=_targets(file, effort),
    )


def _require_plain_lora(file: JsonFields) -> None:
    kind = file.fields.get("peft_type")
    if not isinstance(kind, str):
        raise file.corrupt("has no 'peft_type'")
    if kind != "LORA":
        raise _not_supported(f"is of the type {shown(kind)}", "Only LoRA adapters can be used.")
    for field, value in file.fields.items():
        if field not in _READ | _HARMLESS and value not in (None, False, [], {}):
            raise _not_supported(f"has {_NAMED.get(field, 'the setting')} ({shown(field)})")
    if (bias := file.fields.get("bias", "none")) != "none":
        raise _not_supported(f"changes biases (bias is {shown(bias)})")
    if file.flag("fan_in_fan_out"):
        raise _not_supported("is for transposed weights (fan_in_fan_out)")
    start = file.fields.get("init_lora_weights")
    if not isinstance(start, (str, bool, type(None))):
        raise file.corrupt(f"has the 'init_lora_weights' {shown(start)}")
    if start not in _PLAIN_STARTS:
        raise _not_supported(
            f"was trained beside a changed base (init_lora_weights {shown(start)})"
        )


def _not_supported(what: str, hint: str = _SAVE_PLAIN) -> NotSupported:
    return NotSupported(f"The adapter {what}, which no runtime here can use.", hint=hint)


def _key_matcher(file: JsonFields, key: str, effort: Effort) -> _Matcher:
    """PEFT matches `(.*\\.)?(KEY)$`."""
    if _PLAIN_KEY.fullmatch(key):
        return lambda module: _ends_with(module, key)
    return _pattern(file, rf"(?:.*\.)?(?:{key})", key, effort)


def _ends_with(module: str, key: str) -> bool:
    """The same for a key without operators, whose dots stand for any character still."""
    start = len(module) - len(key)
    if start < 0 or (start and module[start - 1] != "."):
        return False
    return all(k in (".", c) for k, c in zip(key, module[start:], strict=True))


def _pattern(file: JsonFields, pattern: str, written: str, effort: Effort) -> _Matcher:
    def refusal(error: ValueError) -> Exception:
        return file.corrupt(f"has the pattern {shown(written)}, which can't be matched: {error}")

    try:
        compiled = Pattern(pattern, effort)
    except ValueError as error:
        raise refusal(error) from error

    def matches(module: str) -> bool:
        try:
            return compiled.fullmatch(module)
        except ValueError as error:
            raise refusal(error) from error

    return matches


def _targets(file: JsonFields, effort: Effort) -> _Matcher:
    wanted = file.fields.get("target_modules")
    everything = wanted is None or (isinstance(wanted, str) and wanted.lower() == "all-linear")
    included = (lambda module: True) if everything else _named(file, "target_modules", effort)
    without = file.fields.get("exclude_modules")
    excluded = _named(file, "exclude_modules", effort) if without else (lambda module: False)
    in_layer = _layer_matcher(file) if isinstance(wanted, list) else (lambda module: True)
    return lambda module: included(module) and in_layer(module) and not excluded(module)


def _named(file: JsonFields, field: str, effort: Effort) -> _Matcher:
    """A regular expression for whole names, or a list of names' last parts."""
    value = file.fields[field]
    if isinstance(value, str):
        return _pattern(file, value, value, effort)
    names = _strings(value)
    if names is None:
        raise file.corrupt(f"needs a text or a list of texts as {field!r}")
    ends = tuple(f".{name}" for name in names)
    return lambda module: module in names or module.endswith(ends)


def _layer_matcher(file: JsonFields) -> _Matcher:
    """`layers_to_transform`, whose layers are counted by a number in a name."""
    layers = file.fields.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers
    if layers is None or layers == []:
        return lambda module: True
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise file.corrupt("needs a list of layers as 'layers_to_transform'")
    wanted = frozenset(layers)
    numbers = _layer_numbers(file)

    def matches(module: str) -> bool:
        found = next((match for number in numbers if (match := number.match(module))), None)
        return found is not None and int(found[1]) in wanted

    return matches


def _layer_numbers(file: JsonFields) -> list[re.Pattern[str]]:
    """What finds the number of a module's layer, as PEFT does; the first that matches counts."""
    words = file.fields.get("layers_pattern") or []
    words = [words] if isinstance(words, str) else words
    if _strings(words) is None:
        raise file.corrupt("needs a text or a list of texts as 'layers_pattern'")
    if len(words) > _MOST_LAYERS_PATTERNS or not all(map(_PLAIN_KEY.fullmatch, words)):
        raise _not_supported("counts layers by what are no plain names ('layers_pattern')")
    if not words:
        return [re.compile(r".*?\.[^.]*\.(\d+)\.")]
    return [re.compile(rf"(?:^|.*?\.){word}\.(\d+)\.") for word in words]


def _strings(value: Any) -> frozenset[str] | None:
    good = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return frozenset(value) if good and len(value) <= _MOST_PATTERNS else None

"""The layout of a folder for a placement: its vision part by one runtime, its language part
by another."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable

from edgevlm.engine.placement import Placement
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.models.layouts.base import FindParts, Layout, configuration

# runtime: the module that knows its files, the preferred one of two that would do first.
_LAYOUTS = {
    "onnx": "edgevlm.models.layouts.onnx",
    "llamacpp": "edgevlm.models.layouts.gguf",
    "mlx": "edgevlm.models.layouts.mlx",
    "coreml": "edgevlm.models.layouts.coreml",
}
# What the files of a runtime end in, the likeliest first.
_ENDINGS = {
    ".onnx": "onnx",
    ".gguf": "llamacpp",
    ".safetensors": "mlx",
    ".mlmodel": "coreml",
}


def discover(paths: Iterable[str], runtime: str, what: str) -> Layout:
    """Find the parts of a placement, as it is spelled, among relative `paths` with `/`
    between their parts.

    Raises ModelCorrupt naming the missing file, and NotSupported for a runtime whose
    layout is not known; `what` is how the message calls the folder or repository.
    """
    present = frozenset(paths)
    placement = Placement.parse(runtime)
    if placement.vision == placement.language:
        found = [_finder(placement.language, what)(present, ("vision", "language"), what)]
    else:
        found = [
            _finder(placement.vision, what)(present, ("vision",), what),
            _finder(placement.language, what)(present, ("language",), what),
        ]
    roles = {role: path for layout in found for role, path in layout.roles.items()}
    weights = {path for layout in found for path in layout.paths}
    quantization = {part: bits for layout in found for part, bits in layout.quantization.items()}
    return Layout(roles, tuple(sorted(weights | set(configuration(present)))), quantization)


def offered(paths: Collection[str]) -> list[Placement]:
    """Every placement for which a folder or repository holds the files."""
    vision = [name for name in _LAYOUTS if _holds(paths, name, "vision")]
    language = [name for name in _LAYOUTS if _holds(paths, name, "language")]
    return [Placement(v, each) for v in vision for each in language]


def nearest(paths: Collection[str], what: str) -> str:
    """The runtime whose files a folder that is not whole seems to be meant for. Raises
    ModelCorrupt where it holds none of any."""
    for end, runtime in _ENDINGS.items():
        if any(path.endswith(end) for path in paths):
            return runtime
    raise ModelCorrupt(
        f"{what} holds no files of a model that a runtime takes.",
        hint="It wants onnx/*.onnx, or *.gguf with an mmproj-*.gguf, or *.safetensors with a"
        " config.json.",
    )


def _holds(paths: Collection[str], runtime: str, part: str) -> bool:
    try:
        _finder(runtime, "")(paths, (part,), "")  # type: ignore[arg-type]
    except ModelCorrupt:
        return False
    return True


def _finder(runtime: str, what: str) -> FindParts:
    if runtime not in _LAYOUTS:
        raise NotSupported(
            f"{what} is not in the catalog, and runtime {runtime} takes only what is.",
            hint="`edgevlm model list` shows the catalog.",
        )
    find: FindParts = importlib.import_module(_LAYOUTS[runtime]).find
    return find

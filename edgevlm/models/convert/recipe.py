"""What to make: for which runtime, of how many bits, by which exporter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from edgevlm.errors import NotSupported, UsageError
from edgevlm.models.progress import Progress

RUNTIMES = ("onnx", "llamacpp", "mlx", "coreml")
BITS = (4, 8, 16)
_VISION_BITS: Mapping[str, tuple[int, ...]] = {
    "onnx": (8, 16, 32),
    "llamacpp": (8, 16, 32),
    "mlx": (4, 8, 16, 32),
    "coreml": (8, 16),
}
_EXPORTERS: Mapping[str, str] = {
    "onnx": "edgevlm.models.onnx_export:export_onnx",
    "llamacpp": "edgevlm.models.gguf_export:export_gguf",
    "mlx": "edgevlm.models.mlx_export:export_mlx",
    "coreml": "edgevlm.models.coreml_export:export_coreml",
}
# Widths in bits of llama.cpp's own quantizations, and the one that stands for a width.
_QUANTIZATIONS = {"q4_k_m": 4, "q4_0": 4, "q4_1": 4, "q8_0": 8, "f16": 16, "f32": 32}
_BY_BITS = {4: "q4_k_m", 8: "q8_0", 16: "f16"}
# `onnx` is needed by all: the source is measured as an ONNX graph of 32 bits.
_MODULES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnx",),
    "llamacpp": ("onnx", "gguf", "llama_cpp"),
    "mlx": ("onnx", "mlx_vlm"),
    "coreml": ("onnx", "torch", "coremltools"),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """`quantize` is llama.cpp's name of the decoder's types, None for other runtimes.

    Raises UsageError for what no exporter writes.
    """

    runtime: str
    bits: int = 4
    vision_bits: int = 16
    quantize: str | None = None

    @classmethod
    def make(
        cls, runtime: str, bits: int | None, vision_bits: int = 16, quantize: str | None = None
    ) -> Recipe:
        """As asked for on a command line, where a quantization says the bits."""
        if runtime == "llamacpp" and quantize is None:
            quantize = _BY_BITS.get(4 if bits is None else bits)
        width = _QUANTIZATIONS.get((quantize or "").lower())
        if width is not None and bits not in (None, width):
            raise UsageError(f"{quantize} has {width} bits, not {bits}.", hint="Give one of them.")
        bits = bits if bits is not None else width or 4
        return cls(runtime, bits, vision_bits, quantize and quantize.lower())

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise UsageError(
                f"There is no conversion for runtime {self.runtime!r}.",
                hint=f"Choose from {', '.join(RUNTIMES)}.",
            )
        if self.quantize is not None and self.runtime != "llamacpp":
            raise UsageError(f"{self.quantize} is a name of llama.cpp's.", hint="Use --bits.")
        if self.runtime == "llamacpp" and self.quantize not in _QUANTIZATIONS:
            raise UsageError(
                f"A decoder can't be written as {self.quantize!r}.",
                hint=f"Choose from {', '.join(_QUANTIZATIONS)}.",
            )
        _require(self.bits, BITS if self.quantize is None else (self.bits,), "A decoder")
        _require(self.vision_bits, _VISION_BITS[self.runtime], "A vision encoder")

    @property
    def label(self) -> str:
        """The decoder's width as its files call it."""
        return self.quantize or f"{self.bits} bits"

    @property
    def bytes_per_parameter(self) -> float:
        """At most, on the disk, with what only the work needs: the files themselves, the
        source's graph at 32 bits, and where llama.cpp quantizes, the f16 file before it."""
        wide = 2 if self.runtime == "llamacpp" else 0
        return 4 + wide + max(self.bits, 8) / 8

    def check_installed(self) -> None:
        """Raise NotSupported with the command that adds what is missing."""
        missing = [name for name in _MODULES[self.runtime] if find_spec(name) is None]
        if missing:
            extras = ",".join(["convert", *({self.runtime} - {"onnx"})])
            raise NotSupported(
                f"Conversion for {self.runtime} needs what is not installed here:"
                f" {', '.join(missing)}.",
                hint=f"Run: pip install 'edgevlm[{extras}]'",
            )

    def write(self, source: Path, target: Path, name: str, progress: Progress) -> None:
        """Write the runtime's files and the model's configuration into `target`; `name` goes
        into those of llama.cpp.

        Raises ModelCorrupt, NotSupported, NoSpace, RuntimeFailed, and OSError.
        """
        module, _, function = _EXPORTERS[self.runtime].partition(":")
        export: Callable[..., object] = getattr(import_module(module), function)
        options: dict[str, object] = {"bits": self.bits}
        if self.runtime == "onnx":
            options = {"decoder_bits": self.bits, "exact": True, "suffixes": True}
        elif self.quantize is not None:
            options = {"quantize": self.quantize, "name": name}
        export(source, target, vision_bits=self.vision_bits, progress=progress, **options)


def _require(bits: int, known: tuple[int, ...], what: str) -> None:
    if bits not in known:
        raise UsageError(
            f"{what} can't be written at {bits} bits.",
            hint=f"Choose from {', '.join(map(str, known))}.",
        )

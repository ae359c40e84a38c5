"""ONNX Runtime: both parts of a model in the three-file layout of community exports."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgevlm.engine.contract import LanguageModel, LoadOptions, ModelFiles, VisionEncoder

if TYPE_CHECKING:
    from edgevlm.engine.contract import Runtime


class OnnxRuntime:
    """Runs on every machine that has onnxruntime; it is loaded with the first model."""

    name = "onnx"

    def unavailable(self) -> str | None:
        if find_spec("onnxruntime") is None:
            return "onnxruntime is not installed (pip install onnxruntime)"
        return None

    def load_vision(self, files: ModelFiles, options: LoadOptions) -> VisionEncoder:
        """Raises ModelCorrupt, NotSupported, DoesNotFit."""
        from edgevlm.runtimes.onnx_vision import OnnxVisionEncoder

        return OnnxVisionEncoder(files, options)

    def load_language(self, files: ModelFiles, options: LoadOptions) -> LanguageModel:
        """Raises ModelCorrupt, NotSupported, DoesNotFit."""
        from edgevlm.runtimes.onnx_decoder import OnnxLanguageModel

        return OnnxLanguageModel(files, options)


if TYPE_CHECKING:
    _keeps_the_contract: type[Runtime] = OnnxRuntime

"""llama.cpp: GGUF decoders, and GGUF vision encoders through mtmd."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgevlm.engine.contract import LanguageModel, LoadOptions, ModelFiles, VisionEncoder

if TYPE_CHECKING:
    from edgevlm.engine.contract import Runtime


class LlamaCppRuntime:
    """Runs on every machine that has llama-cpp-python; it is loaded with the first model."""

    name = "llamacpp"

    def unavailable(self) -> str | None:
        if find_spec("llama_cpp") is None:
            return "llama-cpp-python is not installed (pip install 'edgevlm[llamacpp]')"
        return None

    def load_vision(self, files: ModelFiles, options: LoadOptions) -> VisionEncoder:
        """Raises ModelCorrupt, NotSupported, DoesNotFit."""
        from edgevlm.runtimes.llamacpp_vision import LlamaCppVisionEncoder

        return LlamaCppVisionEncoder(files, options)

    def load_language(self, files: ModelFiles, options: LoadOptions) -> LanguageModel:
        """Raises ModelCorrupt, NotSupported, DoesNotFit."""
        from edgevlm.runtimes.llamacpp_decoder import LlamaCppLanguageModel

        return LlamaCppLanguageModel(files, options)


if TYPE_CHECKING:
    _keeps_the_contract: type[Runtime] = LlamaCppRuntime

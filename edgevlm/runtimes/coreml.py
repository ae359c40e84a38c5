"""Core ML: packages that a conversion wrote, run on the Neural Engine and the GPU of a Mac.

Apple has begun a successor, Core AI. What knows Core ML is in these files: `coreml_predict`
calls it, `coreml_package` reads what it takes.
"""

from __future__ import annotations

import platform
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgevlm.engine.contract import LanguageModel, LoadOptions, ModelFiles, VisionEncoder

if TYPE_CHECKING:
    from edgevlm.engine.contract import Runtime

# The first with states and weights at 4 bits in blocks.
_OLDEST_MACOS = 15


class CoreMLRuntime:
    """Runs on macOS; elsewhere its packages can be made, and not run."""

    name = "coreml"

    def unavailable(self) -> str | None:
        if platform.system() != "Darwin":
            return "Core ML runs models on macOS only"
        version = platform.mac_ver()[0]
        if int(version.partition(".")[0] or 0) < _OLDEST_MACOS:
            return f"its models need macOS {_OLDEST_MACOS}, and this is {version}"
        if find_spec("coremltools") is None:
            return "coremltools is not installed (pip install 'edgevlm[coreml]')"
        return None

    def load_vision(self, files: ModelFiles, options: LoadOptions) -> VisionEncoder:
        """Raises ModelCorrupt, NotSupported, RuntimeFailed."""
        from edgevlm.runtimes.coreml_vision import CoreMLVisionEncoder

        return CoreMLVisionEncoder(files, options)

    def load_language(self, files: ModelFiles, options: LoadOptions) -> LanguageModel:
        """Raises ModelCorrupt, NotSupported, RuntimeFailed."""
        from edgevlm.runtimes.coreml_decoder import CoreMLLanguageModel

        return CoreMLLanguageModel(files, options)


if TYPE_CHECKING:
    _keeps_the_contract: type[Runtime] = CoreMLRuntime

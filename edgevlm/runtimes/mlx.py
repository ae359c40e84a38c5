"""MLX: both parts of a model through mlx-vlm's model classes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgevlm.engine.contract import LanguageModel, LoadOptions, ModelFiles, VisionEncoder

if TYPE_CHECKING:
    from edgevlm.engine.contract import Runtime


class MlxRuntime:
    """Runs on every machine that has mlx-vlm; it is loaded with the first model."""

    name = "mlx"

    def unavailable(self) -> str | None:
        if find_spec("mlx_vlm") is None:
            return "mlx-vlm is not installed (pip install 'edgevlm[mlx]')"
        return None

    def load_vision(self, files: ModelFiles, options: LoadOptions) -> VisionEncoder:
        """Raises ModelCorrupt, NotSupported, DoesNotFit."""
        from edgevlm.runtimes.mlx_vision import MlxVisionEncoder

        return MlxVisionEncoder(files, options)

    def load_language(self, files: ModelFiles, options: LoadOptions) -> LanguageModel:
        """Raises ModelCorrupt, NotSupported, DoesNotFit."""
        from edgevlm.runtimes.mlx_decoder import MlxLanguageModel

        return MlxLanguageModel(files, options)


if TYPE_CHECKING:
    _keeps_the_contract: type[Runtime] = MlxRuntime

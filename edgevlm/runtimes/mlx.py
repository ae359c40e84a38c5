"""MLX: both parts of a model through mlx-vlm's model classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgevlm.engine.contract import LanguageModel, LoadOptions, ModelFiles, VisionEncoder
from edgevlm.errors import NotSupported

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
        with _importing():
            from edgevlm.runtimes.mlx_config import LLAMA_TYPES, model_folder, read_config
            from edgevlm.runtimes.mlx_own_vision import MlxOwnVisionEncoder
            from edgevlm.runtimes.mlx_vision import MlxVisionEncoder

        if read_config(model_folder(files))["model_type"] in LLAMA_TYPES:
            return MlxVisionEncoder(files, options)
        return MlxOwnVisionEncoder(files, options)

    def load_language(self, files: ModelFiles, options: LoadOptions) -> LanguageModel:
        """Raises ModelCorrupt, NotSupported, DoesNotFit."""
        with _importing():
            from edgevlm.runtimes.mlx_decoder import MlxLanguageModel

        return MlxLanguageModel(files, options)


@contextmanager
def _importing() -> Iterator[None]:
    """MLX has a package for each kind of machine, which pip doesn't bring by itself."""
    try:
        yield
    except ImportError as error:
        raise NotSupported(
            f"MLX can't be loaded: {error}.",
            hint="Install it: pip install --upgrade 'edgevlm[mlx]'",
        ) from error


if TYPE_CHECKING:
    _keeps_the_contract: type[Runtime] = MlxRuntime

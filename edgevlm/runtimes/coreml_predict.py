"""The one call into Core ML. All else about its packages is ours, and runs anywhere."""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import NotSupported, RuntimeFailed
from edgevlm.runtimes.coreml_quiet import coremltools

Units: TypeAlias = Literal["ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY"]


class Package:
    """A package loaded onto `units`, compiled once into `cache`."""

    def __init__(self, path: Path, units: Units, cache: Path | None) -> None:
        """Raises NotSupported off macOS, RuntimeFailed."""
        if platform.system() != "Darwin":
            raise NotSupported("Core ML runs models on macOS only.", hint="Use another runtime.")
        self._name = path.name
        try:
            self._model = _load(path, coremltools.ComputeUnit[units], cache)
        except Exception as error:
            raise self._failed(error) from error

    def new_state(self) -> Any:
        """All states of the program, of zeros. Raises RuntimeFailed."""
        try:
            return self._model.make_state()
        except Exception as error:
            raise self._failed(error) from error

    def write_state(self, state: Any, name: str, value: NDArray[np.float16]) -> None:
        """Replace one of the states. Raises RuntimeFailed."""
        try:
            # coremltools takes no float16; Core ML rounds these back without loss.
            state.write_state(name, value.astype(np.float32))
        except Exception as error:
            raise self._failed(error) from error

    def predict(
        self, inputs: Mapping[str, NDArray[np.float16]], state: Any = None
    ) -> Mapping[str, NDArray[Any]]:
        """Run the program, which changes `state` in place. Raises RuntimeFailed."""
        try:
            outputs: Mapping[str, NDArray[Any]] = self._model.predict(dict(inputs), state)
        except Exception as error:
            raise self._failed(error) from error
        return outputs

    def close(self) -> None:
        self._model = None

    def _failed(self, error: Exception) -> RuntimeFailed:
        # coremltools hands on what Core ML says as RuntimeError, ValueError or Exception.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return RuntimeFailed(
            f"Core ML failed on {self._name}: {reason.rstrip('.')}.",
            hint="Try `--runtime mlx`, or convert the model again.",
        )


def _load(path: Path, units: Any, cache: Path | None) -> Any:
    models = coremltools.models
    if cache is not None:
        # On a disk that is full or not ours it is compiled for this time only.
        with suppress(OSError):
            compiled = compiled_path(path, cache, platform.mac_ver()[0])
            if not compiled.exists():
                _compile(path, compiled)
            return models.CompiledMLModel(str(compiled), compute_units=units)
    return models.MLModel(str(path), compute_units=units)


def compiled_path(package: Path, cache: Path, system: str) -> Path:
    """Where the compiled form of a package lies: another one for other bytes, another place
    of the package, or another version of the `system`."""
    digest = hashlib.sha256(system.encode())
    for file in sorted(path for path in package.rglob("*") if path.is_file()):
        status = file.stat()
        name = file.relative_to(package).as_posix()
        digest.update(f"\n{name} {status.st_size} {status.st_mtime_ns}".encode())
    place = hashlib.sha256(str(package.resolve()).encode()).hexdigest()[:16]
    return cache / "coreml" / f"{place}-{digest.hexdigest()[:16]}.mlmodelc"


def _compile(package: Path, compiled: Path) -> None:
    """Put the compiled form in its place whole, and remove what it takes the place of."""
    compiled.parent.mkdir(parents=True, exist_ok=True)
    place = compiled.name.partition("-")[0]
    for older in compiled.parent.glob(f"{place}-*.mlmodelc"):
        shutil.rmtree(older, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=compiled.parent) as folder:
        draft = Path(folder) / compiled.name
        coremltools.models.utils.compile_model(str(package), str(draft))
        try:
            draft.rename(compiled)
        except OSError:
            if not compiled.exists():  # or another process was first
                raise

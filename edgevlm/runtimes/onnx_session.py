"""One ONNX Runtime session: opened without noise, run under a cancel, its errors made ours."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import DoesNotFit, Interrupted, ModelCorrupt, NotSupported, RuntimeFailed
from edgevlm.runtimes.onnx_paths import checks_paths_itself, stray_path
from edgevlm.runtimes.onnx_quiet import onnxruntime

Array: TypeAlias = NDArray[Any]
# The package has no type information: an `onnxruntime.OrtValue`.
OrtValue: TypeAlias = Any

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
# How the names of inputs begin that take adapters.
ADAPTER_INPUTS = "lora."
_FATAL_ONLY = 4
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_M_MMAP_THRESHOLD = -3  # of malloc.h


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph. A dimension that varies is None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class Session:
    """A loaded graph, which several threads may run at once.

    `graph` stands for what the file at `path` says, and takes its weights from beside it.
    `optional` are the inputs of adapters (`onnx_adapter`), which a run may leave out.
    Raises ModelCorrupt, NotSupported or DoesNotFit when the file can't be loaded.
    """

    def __init__(self, path: Path, threads: int, graph: bytes | None = None) -> None:
        self.path = path
        _map_large_blocks()
        options = session_options(threads)
        if graph is not None:
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
        with _loading(path):
            self._session: Any = onnxruntime.InferenceSession(
                graph or str(path), options, providers=["CPUExecutionProvider"]
            )
        overridable = self._session.get_overridable_initializers()
        self.optional = {
            node.name: _port(node, path)
            for node in overridable
            if node.name.startswith(ADAPTER_INPUTS)
        }
        self.inputs = {node.name: _port(node, path) for node in self._session.get_inputs()}
        self.outputs = {node.name: _port(node, path) for node in self._session.get_outputs()}

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the exporter wrote into the model's `metadata_props`."""
        return dict(self.opened().get_modelmeta().custom_metadata_map)

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, OrtValue],
        cancel: Cancel,
        *,
        release: bool = False,
    ) -> list[OrtValue]:
        """Compute `outputs`; `release` gives the memory of activations back to the system.

        Raises Interrupted, RuntimeFailed.
        """
        session = self.opened()
        values: list[OrtValue] = self._cancellable(
            lambda options: session.run_with_ort_values(outputs, feeds, options), cancel, release
        )
        return values

    def call(self, feeds: Mapping[str, Array]) -> Array:
        """Compute the first output to its end: for what takes microseconds.

        Raises RuntimeFailed.
        """
        session = self.opened()
        try:
            array: Array = session.run(list(self.outputs)[:1], feeds)[0]
        except Exception as error:
            raise _run_failure(self.path, error) from error
        return array

    def new_binding(self) -> Any:
        """An `onnxruntime.IOBinding`: inputs and outputs that stay bound between runs."""
        return self.opened().io_binding()

    def run_bound(self, binding: Any, cancel: Cancel, *, release: bool = False) -> None:
        """`run` with what is bound."""
        session = self.opened()
        self._cancellable(
            lambda options: session.run_with_iobinding(binding, options), cancel, release
        )

    def close(self) -> None:
        """Drop the weights; they go when no context holds a binding any more."""
        self._session = None

    def opened(self) -> Any:
        """The `onnxruntime.InferenceSession`. Raises RuntimeFailed after `close`."""
        if self._session is None:
            raise RuntimeFailed("The model was closed.", hint="Load it again.")
        return self._session

    def _cancellable(self, compute: Callable[[Any], Any], cancel: Cancel, release: bool) -> Any:
        # Options for each run, as a terminate flag would end later runs too. They cost 0.5 us.
        options = onnxruntime.RunOptions()
        # No graph capture, said outright: asked for an entry that is not there, onnxruntime
        # throws and catches an exception inside, which took half of a run's overhead.
        options.add_run_config_entry("gpu_graph_id", "-1")
        if release:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        cancel.check()
        try:
            with cancel.calling(lambda: setattr(options, "terminate", True)):
                return compute(options)
        # ONNX Runtime raises bare RuntimeError too, beside a dozen types of its own.
        except Exception as error:
            if cancel.is_set:
                raise Interrupted("Stopped.") from error
            raise _run_failure(self.path, error) from error


def require_role(files: ModelFiles, role: str) -> Path:
    """The file that plays `role`. Raises ModelCorrupt where there is none."""
    path = files.roles.get(role)
    if path is None:
        raise ModelCorrupt(
            f"{files.name} has no {role} for ONNX Runtime.",
            hint="A model for this runtime has vision_encoder, embed_tokens and decoder files.",
        )
    return path


def to_ort(array: Array) -> OrtValue:
    """An OrtValue over the array's own memory, which it keeps alive."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def as_array(value: OrtValue) -> Array:
    """The value's own memory as an array, which keeps it alive."""
    array: Array = value.numpy()
    return array


def refusal(path: Path, what: str) -> ModelCorrupt:
    """The error for a graph that contradicts itself, the model's files or its layout."""
    return ModelCorrupt(
        f"{path.name} is not what it should be: {what}.",
        hint="Export it again in the three-file layout, or fetch the model anew.",
    )


def session_options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A decoding step is hundreds of operators of some microseconds: waking a sleeping
    # worker for each costs more than its share of work. Spinning within a run and never
    # between runs decoded at 220 tok/s, spinning always 199, never 148 (135M at 4 bits,
    # 2 threads), and the cores are free while a caller reads or samples.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


@cache
def _map_large_blocks() -> None:
    """Have glibc give large blocks back to the system when they are freed.

    It maps blocks of 128 KiB by themselves at first, but then only what is larger than all that
    was freed, up to 32 MiB. Activations of many sizes leave gaps in the heap from there on:
    10 pictures to edgevlm-tiny took 500 MB, and take 420.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_THRESHOLD, 2**20)


def _port(node: Any, path: Path) -> Port:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise NotSupported(
            f"{path.name} takes or gives {node.name!r} as {node.type}, which is not supported.",
            hint="Use an export in float32 or float16.",
        )
    shape = tuple(d if isinstance(d, int) and d >= 0 else None for d in node.shape)
    return Port(node.name, np.dtype(dtype), shape)


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise ModelCorrupt(f"{path} is missing.", hint="Fetch the model again.")
    if not checks_paths_itself() and (stray := stray_path(path)) is not None:
        raise ModelCorrupt(
            f"{path.name} takes weights from {stray[:80]!r}, which is not a file beside it.",
            hint="Don't trust it; if you do, use Python 3.11 or newer with onnxruntime 1.24.",
        )
    try:
        yield
    except Exception as error:
        raise _load_failure(path, error) from error


_TOO_NEW = (
    "Unsupported model IR version",
    "is under development",
    "No Op registered",
    "NOT_IMPLEMENTED",
)
_NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate", "failed to allocate")


def _load_failure(path: Path, error: Exception) -> ModelCorrupt | NotSupported | DoesNotFit:
    text = str(error)
    if isinstance(error, MemoryError) or any(mark in text for mark in _NO_MEMORY):
        return DoesNotFit(
            f"Not enough memory to load {path.name}.", hint="Use a smaller model, or close others."
        )
    if any(mark in text for mark in _TOO_NEW):
        return NotSupported(
            f"ONNX Runtime {onnxruntime.__version__} can't run {path.name}: {_one_line(text)}.",
            hint="Update it: pip install --upgrade onnxruntime",
        )
    return ModelCorrupt(
        f"{path.name} is broken or incomplete: {_one_line(text)}.",
        hint="Fetch the model again; beside the file must lie the weights that it names.",
    )


def _run_failure(path: Path, error: Exception) -> RuntimeFailed:
    text = str(error)
    if isinstance(error, MemoryError) or any(mark in text for mark in _NO_MEMORY):
        return RuntimeFailed(
            f"ONNX Runtime ran out of memory in {path.name}.",
            hint="Use a smaller model, a shorter conversation or pictures of fewer tiles.",
        )
    return RuntimeFailed(
        f"ONNX Runtime failed in {path.name}: {_one_line(text)}.",
        hint="Verify the model's files; if they are whole, please report this.",
    )


def _one_line(text: str) -> str:
    """ONNX Runtime's reason without its codes, its C++ signatures and our paths."""
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text.strip().splitlines()[0])
    line = re.sub(r"^Load model from .*? failed:", "", line)
    line = re.sub(r"\S+\.(?:cc|h):\d+ .*\)(?= )", "", line)
    return line.strip().rstrip(".")[:200]

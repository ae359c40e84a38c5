"""llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import llama_cpp

from edgevlm.devices.threads import compute_threads
from edgevlm.errors import RuntimeFailed
from edgevlm.models.disk import sync_file, sync_folder
from edgevlm.models.progress import Progress

FILE_TYPES = {
    "f32": llama_cpp.LLAMA_FTYPE_ALL_F32,
    "f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}
_ERROR = 3
_STEP = re.compile(rb"^\[\s*(\d+)/\s*(\d+)\]")


def quantize(wide: Path, path: Path, kind: str, progress: Progress) -> None:
    """Write `path` from the GGUF file `wide`, whole or not at all. Raises RuntimeFailed.

    llama.cpp says which tensor it is at in its log, and nowhere else: that moves the bar.
    """
    draft = path.with_name(path.name + ".part")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[kind]
    parameters.nthread = compute_threads()
    progress.start(wide.stat().st_size, f"quantizing {path.name}")
    said: list[str] = []
    try:
        with _listening(_Bar(wide.stat().st_size, progress, said)):
            failed = llama_cpp.llama_model_quantize(bytes(wide), bytes(draft), parameters)
        if failed:
            why = said[-1] if said else f"it gave {failed}"
            raise RuntimeFailed(f"llama.cpp could not write {path.name}: {why}.")
        sync_file(draft)
        draft.replace(path)
        sync_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    progress.finish()


class _Bar:
    """Moves by the steps that llama.cpp logs, and keeps its complaints."""

    def __init__(self, total: int, progress: Progress, complaints: list[str]) -> None:
        self._total, self._progress, self._complaints = total, progress, complaints
        self._done = 0

    def __call__(self, level: int, text: bytes, _: object) -> None:
        step = _STEP.match(text)
        if step:
            done = self._total * int(step[1]) // int(step[2])
            self._progress.advance(done - self._done)
            self._done = done
        elif level == _ERROR:
            self._complaints.append(text.decode(errors="replace").strip().rstrip("."))


@contextmanager
def _listening(listener: Callable[[int, bytes, Any], None]) -> Iterator[None]:
    """Within the block llama.cpp's log goes to `listener`, after it to where it went before."""
    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    callback = llama_cpp.llama_log_callback(listener)
    llama_cpp.llama_log_set(callback, None)
    try:
        yield
    finally:
        llama_cpp.llama_log_set(before, data)


def tensor_types(path: Path) -> Mapping[str, int]:
    """How many tensors of a GGUF file have which type."""
    types = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors)
    return dict(types.most_common())

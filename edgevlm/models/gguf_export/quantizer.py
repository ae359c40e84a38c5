"""llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import gguf

from edgevlm.devices.threads import compute_threads
from edgevlm.errors import RuntimeFailed
from edgevlm.models.disk import sync_file, sync_folder
from edgevlm.models.progress import Progress
from edgevlm.runtimes.llamacpp_library import errors, llama, reason

FILE_TYPES = {
    "f32": llama.LLAMA_FTYPE_ALL_F32,
    "f16": llama.LLAMA_FTYPE_MOSTLY_F16,
    "q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": llama.LLAMA_FTYPE_MOSTLY_Q4_1,
    "q4_k_m": llama.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}
_STEP = re.compile(rb"^\[\s*(\d+)/\s*(\d+)\]")


def quantize(wide: Path, path: Path, kind: str, progress: Progress) -> None:
    """Write `path` from the GGUF file `wide`, whole or not at all. Raises RuntimeFailed."""
    draft = path.with_name(path.name + ".part")
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[kind]
    parameters.nthread = compute_threads()
    total, done = wide.stat().st_size, 0

    def step(number: int, count: int) -> None:
        nonlocal done
        progress.advance(total * number // count - done)
        done = total * number // count

    progress.start(total, f"Quantizing {path.name}")
    try:
        with errors() as lines, _told_of_steps(step):
            failed = llama.llama_model_quantize(os.fsencode(wide), os.fsencode(draft), parameters)
        if failed:
            raise RuntimeFailed(
                f"llama.cpp could not write {path.name}: {reason(lines)}.",
                hint="Check that the disk has room; if it has, please report this.",
            )
        sync_file(draft)
        draft.replace(path)
        sync_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    progress.finish()


@contextmanager
def _told_of_steps(step: Callable[[int, int], None]) -> Iterator[None]:
    """Within the block `step(number, count)` is called for each tensor; what it raises comes
    out at the end, since nothing stops the quantizer.

    llama.cpp says where it is in its log, and nowhere else.
    """
    raised: list[BaseException] = []
    before, data = llama.llama_log_callback(), ctypes.c_void_p()
    llama.llama_log_get(ctypes.byref(before), ctypes.byref(data))

    def listen(level: int, text: bytes, _: object) -> None:
        found = _STEP.match(text)
        if not found:
            before(level, text, data)
        elif not raised:
            try:
                step(int(found[1]), int(found[2]))
            except BaseException as error:
                raised.append(error)

    callback = llama.llama_log_callback(listen)
    llama.llama_log_set(callback, None)
    try:
        yield
    finally:
        llama.llama_log_set(before, data)
    if raised:
        raise raised[0]


def tensor_types(path: Path) -> Mapping[str, int]:
    """How many tensors of a GGUF file have which type."""
    types = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors)
    return dict(types.most_common())

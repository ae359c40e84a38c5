"""The llama_cpp module's low-level API, loaded quietly and with idle threads asleep.

llama.cpp, ggml and mtmd write to stderr unless told otherwise: what they log as an error
is kept for the message of ours that follows, everything else is dropped.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgevlm.errors import NotSupported

# The second is GNU's own, in turns of its waiting loop; others don't look at it.
_RESTING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
_ERROR = 4  # enum ggml_log_level
_UPDATE = "Install it again: pip install --upgrade --force-reinstall 'edgevlm[llamacpp]'"


class _Collected(threading.local):
    """What this thread's running call has logged as errors; None outside of `errors`."""

    lines: list[str] | None = None


_collected = _Collected()


@contextmanager
def errors() -> Iterator[list[str]]:
    """The lines that llama.cpp logs as errors within the block, on this thread."""
    outer, _collected.lines = _collected.lines, []
    try:
        yield _collected.lines
    finally:
        _collected.lines = outer


def reason(lines: list[str]) -> str:
    """The first of `errors` that says why, without the names of C++ functions."""
    for line in lines:
        text = line.strip()
        head, _, rest = text.partition(": ")
        text = rest if rest and " " not in head else text
        text = text.removeprefix("error loading model: ").removeprefix("error: ")
        if text:
            return text.splitlines()[0].rstrip(".")[:200]
    return "it gives no reason"


def has_amx() -> bool:
    """Whether this build multiplies in the tiles of Intel's AMX where weights lie repacked.

    GCC drops the shapes of those tiles, which llama.cpp writes to its stack, and the first product
    ends the process as an illegal instruction (ggml-org/llama.cpp#26954; 0.3.36, GCC 12).
    """
    return b"AMX_INT8 = 1" in llama.llama_print_system_info()


def _keep_errors(level: int, text: bytes, user_data: object) -> None:
    if level == _ERROR and _collected.lines is not None:
        _collected.lines.append(text.decode("utf-8", "replace"))


@contextmanager
def _resting_threads() -> Iterator[None]:
    """OpenMP reads its policy once, when the library is loaded.

    Workers that spin while they wait take the cores from whatever else wants to run: on a busy
    machine decoding fell from 36 to 2 tok/s. Workers that sleep at once are woken hundreds of
    times a token: on a quiet one it fell from 95 to 32. A short spin, and then sleep, gave 27
    and 93. A policy that the user has set is kept.
    """
    if any(name in os.environ for name in _RESTING):
        yield
        return
    os.environ.update(_RESTING)
    try:
        yield
    finally:
        for name in _RESTING:
            os.environ.pop(name, None)


def _import() -> tuple[Any, Any, Any]:
    try:
        with _resting_threads():
            from llama_cpp import _ctypes_extensions, llama_cpp, mtmd_cpp

            ggml = llama_cpp._lib
            if sys.platform == "win32":
                load = _ctypes_extensions.load_shared_library
                ggml = load("ggml-base", llama_cpp._base_path)
    # A library of another machine or version: OSError, RuntimeError, AttributeError, ...
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise NotSupported(
            f"llama-cpp-python is installed and can't be loaded: {lines[0][:200]}.", hint=_UPDATE
        ) from error
    return llama_cpp, mtmd_cpp, ggml


# `ggml` finds what llama.cpp is built on: by the name of its file it would be a second copy.
llama, mtmd, ggml = _import()
# Kept: C holds no reference to it.
_log_callback = llama.llama_log_callback(_keep_errors)
for _set in (llama.llama_log_set, mtmd.mtmd_log_set, mtmd.mtmd_helper_log_set):
    _set(_log_callback, None)
llama.llama_backend_init()

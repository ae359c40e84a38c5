"""The one thread that everything of MLX happens on, and what it asks of the machine.

MLX's streams belong to the thread that made them, and an array that is not computed yet
(a weight still in its file, a frequency table of a rotary embedding) to its stream: another
thread that meets it fails. Sessions come from any thread, so their work is handed over.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import mlx.core as mx

from edgevlm.errors import DoesNotFit, EdgeVLMError, RuntimeFailed

_P = ParamSpec("_P")
_T = TypeVar("_T")

_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlx")


def on_mlx_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call `function` there and wait. MLX's own errors become RuntimeFailed."""
    try:
        return _thread.submit(function, *args, **kwargs).result()
    except (EdgeVLMError, MemoryError):
        raise
    # MLX raises bare ones, and so does a pool whose interpreter is ending.
    except (RuntimeError, ValueError) as error:
        raise RuntimeFailed(
            f"MLX failed: {one_line(error)}.",
            hint="Verify the model's files; if they are whole, please report this.",
        ) from error


def on_metal() -> bool:
    """Whether arrays live on a GPU; without one, 16-bit floats are slower than 32."""
    return bool(mx.metal.is_available())


def limit_memory(weight_bytes: int) -> None:
    """Keep weights of that size wired on the GPU, and MLX within what macOS recommends.

    Raises DoesNotFit where they are larger than that.
    """
    if not on_metal():
        return
    recommended = int(mx.device_info()["max_recommended_working_set_size"])
    if weight_bytes > recommended:
        raise DoesNotFit(
            f"The weights take {weight_bytes / 1e9:.1f} GB,"
            f" this Mac's GPU may use {recommended / 1e9:.1f} GB.",
            hint="Use a smaller model, or one with fewer bits.",
        )
    mx.set_memory_limit(recommended)
    mx.set_wired_limit(recommended)


def one_line(error: Exception) -> str:
    """The text of an error of MLX, which may be a page, as part of a sentence."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__

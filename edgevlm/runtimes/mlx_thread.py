"""The one thread that everything of MLX happens on, and what it asks of the machine.

MLX's streams belong to the thread that made them, and an array that is not computed yet
(a weight still in its file, a frequency table of a rotary embedding) to its stream: another
thread that meets it fails. Sessions come from any thread, so their work is handed over.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

import mlx.core as mx

from edgevlm.engine.cancel import Cancel
from edgevlm.errors import DoesNotFit, EdgeVLMError, RuntimeFailed

_P = ParamSpec("_P")
_T = TypeVar("_T")


# transformers, which mlx-vlm brings, says at its import that it lacks a PyTorch nobody wants here.
logging.getLogger("transformers").addFilter(
    lambda record: not record.getMessage().startswith("PyTorch was not found")
)


class _Worker:
    """A thread that lives until the program ends, and then gives its streams back: the
    process would be aborted for streams that outlive their thread."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlx", daemon=True)
        self._thread.start()
        self._process = os.getpid()
        atexit.register(self._end)

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        future: Future[_T] = Future()
        if os.getpid() != self._process:  # a fork leaves the thread behind
            future.set_exception(
                RuntimeFailed(
                    "MLX does not outlive a fork of the process.",
                    hint="Load models in the process that asks, and start it with `spawn`.",
                )
            )
            return future
        if not self._thread.is_alive():
            future.set_exception(RuntimeError("the program is ending"))
            return future
        self._calls.put((future, call))
        return future

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except BaseException as error:  # it belongs to whoever waits
                future.set_exception(error)
            # A result or an error held here would keep its arrays until the next call.
            del item, future, call
        mx.clear_streams()

    def _end(self) -> None:
        self._calls.put(None)
        self._thread.join()


_worker = _Worker()


def on_mlx_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call `function` there and wait. MLX's own errors become RuntimeFailed."""
    return _result(_worker.submit(lambda: function(*args, **kwargs)))


def on_mlx_thread_until(
    cancel: Cancel, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """`on_mlx_thread`, but raise Interrupted as soon as `cancel` is set. `function` stops where
    it looks at the flag itself, and what comes after it waits until then."""
    cancel.check()
    future = _worker.submit(lambda: function(*args, **kwargs))
    over = threading.Event()
    future.add_done_callback(lambda _: over.set())
    with cancel.calling(over.set):
        over.wait()
    if not future.done():
        cancel.check()
    return _result(future)


def _result(future: Future[_T]) -> _T:
    try:
        return future.result()
    except (EdgeVLMError, MemoryError):
        raise
    # MLX and the models of mlx-vlm raise whatever Python has.
    except Exception as error:
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

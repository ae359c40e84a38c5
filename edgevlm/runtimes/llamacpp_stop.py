"""A flag that llama.cpp reads between operators without calling into Python."""

from __future__ import annotations

import ctypes
import sys

from edgevlm.runtimes.llamacpp_library import llama

_libc = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
# The callback is asked after every one of about a thousand operators a token. In Python it
# would want the interpreter's lock each time, which any busy thread may hold for 5 ms. The
# length of a text, empty until it is raised, is a "no" or a "yes" that C gives by itself.
_abort_callback = ctypes.cast(_libc.strlen, llama.ggml_abort_callback)


class StopFlag:
    """For one call: one that is raised late, by an old call's cancel, harms no later call."""

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)

    def raise_(self) -> None:
        self._text[0] = b"x"

    def watch(self, context: int) -> None:
        """Have the llama_context look at this flag, which must live as long as it does."""
        llama.llama_set_abort_callback(
            context, _abort_callback, ctypes.cast(self._text, ctypes.c_void_p)
        )

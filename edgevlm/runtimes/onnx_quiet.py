"""The onnxruntime module, imported without a warning that means nothing to our users.

Releases from 1.23 on say at import, before any log level can be set, that they could not
identify a display which is no GPU: on Raspberry Pis, under WSL and in many containers
(microsoft/onnxruntime#26763, #27092).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

_MEANINGLESS = b"device_discovery.cc"


@contextmanager
def without_discovery_warnings() -> Iterator[None]:
    """Within the block, what anyone writes to stderr waits; then all but those lines goes out."""
    with ExitStack() as stack:
        try:
            waiting = stack.enter_context(tempfile.TemporaryFile())
            stderr = os.dup(2)
        except OSError:  # no room for it, or closed as a background service's may be
            yield
            return
        os.dup2(waiting.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            waiting.seek(0)
            lines = [line for line in waiting if _MEANINGLESS not in line]
            with suppress(OSError):
                os.write(2, b"".join(lines))


def _import() -> Any:
    import onnxruntime

    return onnxruntime


if sys.platform == "linux" and "onnxruntime" not in sys.modules:
    with without_discovery_warnings():
        onnxruntime = _import()
else:
    onnxruntime = _import()

"""Where a graph says that its weights lie, for ONNX Runtime before 1.24.

From 1.24 on it refuses weights outside the graph's folder itself; 1.23, the last for
Python 3.10, opens whatever path the file names.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from edgevlm.runtimes.onnx_quiet import onnxruntime

# A StringStringEntryProto as every writer puts it: key "location", then a value under 128 bytes.
_ENTRY = re.compile(rb"\n\x08location\x12([\x01-\x7f])")
_KEY = b"location"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def checks_paths_itself() -> bool:
    major, minor = onnxruntime.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (1, 24)


def stray_path(graph: Path) -> str | None:
    """The first place of weights that is not a plain file name beside the graph, or None.

    The word is looked for anywhere, and must stand in the one form that can be read here:
    a file written otherwise to hide a path is not plain either. Raises OSError.
    """
    if not graph.stat().st_size:
        return None
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_KEY)
        while at >= 0:
            entry = _ENTRY.match(data, max(0, at - 2))
            if entry is None or entry.start() != at - 2:
                return "a place that can't be read"
            value = data[entry.end() : entry.end() + entry[1][0]].decode("utf-8", "replace")
            if not _PLAIN.fullmatch(value):
                return value
            at = data.find(_KEY, entry.end() + len(value))
    return None

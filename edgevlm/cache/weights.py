"""Which weights are under a model's name at this moment."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from edgevlm.engine.contract import ModelFiles


def weights_key(files: ModelFiles) -> str:
    """SHA-256, in hex, of what the file system tells of the files that a model is loaded from.

    Names, sizes, inodes and times of change of all files beside `files.folder`'s own and beside
    each role's: reading gigabytes takes seconds, and whoever replaces a file changes these, a
    copy that keeps its modification time too. Take it before the files are loaded: what is
    replaced meanwhile then has another key from the next load on. Raises OSError.
    """
    lines = [f"{files.name} {files.edition} {sorted(files.quantization.items())}"]
    for folder in sorted({files.folder, *(path.parent for path in files.roles.values())}):
        lines += [_state(path) for path in sorted(folder.iterdir())]
    lines += [f"{role} {path}" for role, path in sorted(files.roles.items())]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # a link to nowhere is no weights
        return f"{path!s} missing"
    if not stat.S_ISREG(status.st_mode):
        return f"{path!s} other"
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return f"{path!s} {status.st_size} {status.st_dev}:{status.st_ino} {times}"

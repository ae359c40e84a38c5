"""The disk's own limits: room, permissions, and what survives a crash."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgevlm.errors import ModelUnavailable, NoSpace

# EFBIG is what a file system answers that holds no file so large (FAT has a limit of 4 GiB).
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
_MARGIN = 16 * 2**20


def size_text(size: int) -> str:
    """Bytes as a person reads them: 98 kB, 524 MB, 1.71 GB."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return (
                f"{size / step:.3g} {unit}" if size < 999.5 * step else f"{size / step:.0f} {unit}"
            )
    return f"{size} bytes"


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise NoSpace unless `folder`'s disk has room for `needed` bytes, and a little more."""
    free = shutil.disk_usage(folder).free
    if needed + _MARGIN > free:
        raise NoSpace(
            f"{what} needs {size_text(needed)} in {folder} and {size_text(free)} are free.",
            hint="Free some space, or set EDGEVLM_HOME to a folder on another disk.",
        )


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full or forbidden disk into NoSpace or ModelUnavailable; leave other errors be."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(
                f"The disk of {folder} is full: {error.strerror}.",
                hint="Free some space, or set EDGEVLM_HOME elsewhere; what came so far is kept.",
            ) from error
        if error.errno in _FORBIDDEN:
            raise ModelUnavailable(
                f"Can't write to {folder}: {error.strerror}.",
                hint="Set EDGEVLM_HOME to a folder that you may write to.",
                retryable=False,
            ) from error
        raise


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn a file of `folder` that we may not read into ModelUnavailable."""
    try:
        yield
    except PermissionError as error:
        raise ModelUnavailable(
            f"You may not read {error.filename or folder}.",
            hint="Check its permissions and its folder's.",
            retryable=False,
        ) from error


def sync_file(path: Path) -> None:
    """Have a file's bytes survive a power cut."""
    with path.open("rb+" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have a folder's entries survive a power cut, where the system can (Windows can't)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file whole or not at all, even across a power cut."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(text, encoding="utf-8")
    sync_file(draft)
    draft.replace(path)
    sync_folder(path.parent)

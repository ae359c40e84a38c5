"""The door: a path, URL, bytes, Pillow image or array goes in, RGB pixels come out."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UnreadableMedia
from edgevlm.media.describe import shown, url_shown
from edgevlm.media.image import decode, from_array, from_pil
from edgevlm.media.limits import DEFAULT_LIMITS, MediaLimits

Fetch: TypeAlias = Callable[[str, MediaLimits], bytes]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(?=//)|file:", re.IGNORECASE)


def load_image(source: Any, *, limits: MediaLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Read one picture as RGB uint8 [H, W, 3], C-contiguous, in memory of its own.

    `source` is a path (str or os.PathLike), an `https://` or base64 `data:` URL (str),
    the bytes of a file, a Pillow image, or an array: uint8, uint16, bool, or floats from
    0 to 1, shaped [H, W] or [H, W, 1 | 3 | 4]. Files are JPEG, PNG, WebP, GIF, BMP or
    TIFF, whatever they are called; of an animation the first frame is read.

    Raises UnreadableMedia for what can't be found, fetched or decoded, and MediaTooLarge
    for what goes over `limits`.
    """
    return load_image_with(_fetch, source, limits)


def load_image_with(fetch: Fetch, source: Any, limits: MediaLimits) -> NDArray[np.uint8]:
    """`load_image`, with URLs read by `fetch`."""
    if isinstance(source, (str, os.PathLike)):
        found, name = _locate(fetch, source, limits)
        data = found if isinstance(found, bytes) else read_file(found, limits)
        return decode(data, limits, name=name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = "The picture given as bytes"
        limits.check_bytes(memoryview(source).nbytes, name)
        return decode(bytes(source), limits, name=name)
    if isinstance(source, np.ndarray):
        return from_array(source, limits)
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(source, pillow.Image):
        return from_pil(source, limits)
    raise UnreadableMedia(
        f"A {type(source).__name__} is not a picture.",
        hint="Give a path, an https URL, the bytes of a file, a PIL image or a numpy array.",
    )


def open_source(
    source: Any, limits: MediaLimits = DEFAULT_LIMITS, what: str = "picture"
) -> tuple[BinaryIO, str]:
    """The bytes of a path, URL or bytes object, to be read and closed, and what to call them.

    `limits` bound what comes over the network, or as bytes. Raises UnreadableMedia,
    MediaTooLarge.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = f"The {what} given as bytes"
        limits.check_bytes(memoryview(source).nbytes, name)
        return io.BytesIO(source), name
    if not isinstance(source, (str, os.PathLike)):
        raise UnreadableMedia(
            f"A {type(source).__name__} is not a {what}.",
            hint="Give a path, an https URL or the bytes of a file.",
        )
    found, name = _locate(_fetch, source, limits)
    return (io.BytesIO(found) if isinstance(found, bytes) else open_file(found)), name


def open_file(path: Path) -> BinaryIO:
    """A regular file, open for reading. Raises UnreadableMedia."""
    name = shown(path)
    with _told(name):
        # Before opening, since opening alone can wait for ever (FIFO) or act (device).
        _check_regular(path.stat().st_mode, name)
        # Not waiting, in case the name has come to mean a FIFO since.
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        file = open(os.open(path, flags), "rb")  # noqa: PTH123, SIM115 opened by descriptor
    try:
        _check_regular(os.fstat(file.fileno()).st_mode, name)
    except BaseException:
        file.close()
        raise
    return file


def read_file(path: Path, limits: MediaLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of a regular file. Raises UnreadableMedia, MediaTooLarge."""
    name = shown(path)
    with open_file(path) as file, _told(name):
        limits.check_bytes(os.fstat(file.fileno()).st_size, name)
        data = file.read(limits.max_bytes + 1)
    limits.check_bytes(len(data), name)
    return data


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What the system says of a file becomes a MediaError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UnreadableMedia(f"There is no file {name}.", hint="Check the path.") from error
    except PermissionError as error:
        raise UnreadableMedia(
            f"You may not read {name}.", hint="Check its permissions and its folder's."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableMedia(f"Can't read {name}: {reason}.", hint="Check the path.") from error


def _check_regular(mode: int, name: str) -> None:
    if stat.S_ISREG(mode):
        return
    what = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
    raise UnreadableMedia(f"{name} is {what}, not a file.", hint="Give the path of a file.")


def _locate(
    fetch: Fetch, source: str | os.PathLike[Any], limits: MediaLimits
) -> tuple[bytes | Path, str]:
    """The bytes that a URL stands for, or a path; and its name for messages."""
    if isinstance(source, str):
        if not source.strip():
            raise UnreadableMedia("The path is empty.", hint="Give a path or URL.")
        if source[:5].lower() == "data:":
            return _from_data_url(source, limits), "The data URL"
        if _SCHEME.match(source):
            return _from_url(fetch, source, limits), url_shown(source)
    path = Path(os.fsdecode(source))
    if isinstance(source, str) and source.startswith("~"):
        path = _expanded(path)
    return path, shown(path)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # no such user
        return path


def _from_url(fetch: Fetch, url: str, limits: MediaLimits) -> bytes:
    scheme = url.partition(":")[0].lower()
    if scheme != "https":
        hint = {"http": "Use https://.", "file": "Give the path alone."}.get(
            scheme, "Give a path or an https:// URL."
        )
        raise UnreadableMedia(f"{scheme}: URLs are not read.", hint=hint)
    return fetch(url, limits)


def _from_data_url(url: str, limits: MediaLimits) -> bytes:
    header, comma, body = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise UnreadableMedia(
            "The data URL is not in base64.", hint="Write data:image/png;base64,..."
        )
    limits.check_bytes(len(body) * 3 // 4 - 2, "The data URL")
    try:
        packed = "".join(unquote(body).split())
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableMedia(
            "The data URL's base64 is broken.", hint="Encode the picture again."
        ) from error


def _fetch(url: str, limits: MediaLimits) -> bytes:
    from edgevlm.media.fetch import fetch

    return fetch(url, limits)

"""Pictures of requests: data URLs, hosts that were allowed, and names for those seen before."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import MediaError
from edgevlm.media import MediaLimits, load_image
from edgevlm.media.image import pixels_key
from edgevlm.serve.errors import ApiError, api_error
from edgevlm.serve.protocol import ImagePart, ImageUrl

Pixels = NDArray[np.uint8]
_LONGEST_NAME = 256
_KEPT_BYTES = 128 * 2**20
_MOST_NAMES = 1024


@dataclass(frozen=True, slots=True)
class _Seen:
    """`url` is the SHA-256 of the URL that it came by, `key` that of its pixels."""

    pixels: Pixels
    url: bytes
    key: str


class Pictures:
    """Reads the pictures of requests. Safe for threads.

    `hosts` are those that https URLs may name; none is the default. What a `uuid` was given
    to stays bound to it for as long as it is kept, among those used last.
    """

    def __init__(self, limits: MediaLimits, hosts: Collection[str] = ()) -> None:
        self._limits = replace(limits, hosts=frozenset(host.lower() for host in hosts))
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, part: ImagePart, where: str) -> Pixels:
        """RGB uint8 [H, W, 3]. `where` is the field's path. Raises ApiError."""
        name, url = part.uuid, _url(part)
        if name is not None and not 0 < len(name) <= _LONGEST_NAME:
            raise ApiError(400, f"A uuid has 1 to {_LONGEST_NAME} characters.", param=where)
        if url is None:
            return self._named(name, where)
        digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()
        known = self._find(name)
        if known is not None and known.url == digest:
            return known.pixels
        pixels = self._read(url, where)
        if name is not None:
            self._bind(name, _Seen(pixels, digest, pixels_key(pixels)), where)
        return pixels

    def _read(self, url: str, where: str) -> Pixels:
        if not url[:8].lower().startswith(("data:", "https://")):
            raise ApiError(
                400,
                "Pictures come as data:image/...;base64 URLs, or by https from allowed hosts.",
                param=where,
                code="invalid_image_url",
            )
        try:
            return load_image(url, limits=self._limits)
        except MediaError as error:
            raise api_error(error, param=where) from error

    def _named(self, name: str | None, where: str) -> Pixels:
        known = self._find(name)
        if known is None:
            raise ApiError(
                400,
                "There is no picture: give image_url, or the uuid of one that was sent before.",
                param=where,
                code="unknown_image",
            )
        return known.pixels

    def _find(self, name: str | None) -> _Seen | None:
        with self._lock:
            if name is None or name not in self._seen:
                return None
            self._seen.move_to_end(name)
            return self._seen[name]

    def _bind(self, name: str, seen: _Seen, where: str) -> None:
        with self._lock:
            before = self._seen.get(name)
            if before is not None and before.key != seen.key:
                raise ApiError(
                    409,
                    "That uuid is another picture's. Give each picture its own.",
                    param=where,
                    code="uuid_taken",
                )
            self._seen[name] = seen
            self._seen.move_to_end(name)
            held = sum(each.pixels.nbytes for each in self._seen.values())
            while len(self._seen) > (1 if held > _KEPT_BYTES else _MOST_NAMES):
                _, oldest = self._seen.popitem(last=False)
                held -= oldest.pixels.nbytes


def _url(part: ImagePart) -> str | None:
    return part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url

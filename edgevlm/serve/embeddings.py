"""`POST /v1/embeddings/image`: the vision encoder alone, one end of split inference."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import Interrupted
from edgevlm.media.embeddings import pack_embeddings
from edgevlm.serve.answers import when_gone
from edgevlm.serve.conversation import Reader
from edgevlm.serve.errors import ApiError
from edgevlm.serve.listing import Listing
from edgevlm.serve.protocol import EmbeddingRequest, Own, read

_MOST_AT_ONCE = 8
_MOST_PICTURES = 32
T = TypeVar("T")


@dataclass(slots=True)
class ImageEmbeddings:
    """The route. `seconds` is how long a request may take. Adapters of the vision tower are
    for answers alone."""

    reader: Reader
    listing: Listing
    seconds: float
    _under_way: int = field(default=0, init=False)

    async def __call__(self, http: HttpRequest) -> JSONResponse:
        asked = read(EmbeddingRequest, await http.body())
        if asked.model != self.listing.model.name:
            self.listing.adapters(asked.model, Own())  # raises for a name that isn't there
            raise ApiError(400, "Embeddings are of the base model.", param="model")
        urls = [asked.image] if isinstance(asked.image, str) else asked.image
        if not 0 < len(urls) <= _MOST_PICTURES:
            raise ApiError(400, f"Give 1 to {_MOST_PICTURES} pictures.", param="image")
        with self._place():
            pictures = await self._until_gone(http, partial(self._encode, asked, urls))
        return JSONResponse(
            {
                "object": "list",
                "model": asked.model,
                "data": pictures,
                "usage": {"image_tokens": sum(picture["shape"][0] for picture in pictures)},
            }
        )

    def _encode(
        self, asked: EmbeddingRequest, urls: list[str], cancel: Cancel
    ) -> list[dict[str, Any]]:
        encoded = []
        for index, url in enumerate(urls):
            image = self.reader.picture(
                url, f"image[{index}]", asked.detail or "auto", asked.image_tokens
            )
            encoded.append(self._entry(index, image, cancel))
        return encoded

    def _entry(self, index: int, image: ImageInput, cancel: Cancel) -> dict[str, Any]:
        model = self.listing.model
        if image.prepared is not None or image.block is not None or model.fingerprint is None:
            raise ApiError(
                400,
                f"{model.name} can't take embeddings back: its pictures need more than these.",
                param="model",
                code="not_supported",
            )
        rows = model.embed(image, cancel)
        return {
            "object": "image_embedding",
            "index": index,
            "embedding": pack_embeddings(rows),
            "shape": list(rows.shape),
            "dtype": "float32",
            "edgevlm": {"grid": list(image.grid), "fingerprint": model.fingerprint},
        }

    async def _until_gone(self, http: HttpRequest, work: Callable[[Cancel], T]) -> T:
        """Do the work on a thread, and stop it where the client leaves or the time is up."""
        cancel, began = Cancel(), time.monotonic()
        timer = asyncio.get_running_loop().call_later(self.seconds, cancel.set)
        watching = asyncio.create_task(when_gone(http.receive, cancel.set))
        try:
            return await anyio.to_thread.run_sync(work, cancel)
        except Interrupted as error:
            if time.monotonic() - began < self.seconds:
                raise
            raise ApiError(
                408,
                f"The embeddings took longer than {self.seconds:g} s. Send fewer pictures.",
                code="timeout",
            ) from error
        finally:
            watching.cancel()
            timer.cancel()

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._under_way >= _MOST_AT_ONCE:
            raise ApiError(429, "Too many pictures are waiting.", code="queue_full", retry_after=1)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

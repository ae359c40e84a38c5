"""Everything that an answer depends on, and the key that it makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm import __version__
from edgevlm.cache.sketch import Sketch
from edgevlm.cache.wording import loosened, normalised
from edgevlm.engine.prompt import ImageInput
from edgevlm.engine.sampling import Sampling
from edgevlm.media.image import pixels_key
from edgevlm.messages import ActiveAdapter, Role

# Count this up with every change of preprocessing, prompts or decoding that changes answers.
ANSWERS_VERSION = 1


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a conversation, by what it holds: `content` is a SHA-256 in hex.

    `detail` and `budget` are how it was asked to be prepared; `sketch` is there where near
    pictures count.
    """

    content: str
    shape: tuple[int, ...]
    detail: str
    budget: int | None
    sketch: Sketch | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls, pixels: NDArray[np.uint8], detail: str, budget: int | None, *, near: bool = False
    ) -> Picture:
        """Of decoded RGB uint8 [H, W, 3]; `near` is `AnswerCache.near`."""
        shape = tuple(int(n) for n in pixels.shape)
        sketch = Sketch.of(pixels) if near else None
        return cls(f"pixels {pixels_key(pixels)}", shape, detail, budget, sketch)

    @classmethod
    def prepared(cls, image: ImageInput) -> Picture:
        """Of what there are only prepared pixels or embeddings: a video's frame, or a picture
        that was encoded elsewhere."""
        return cls(f"prepared {image.key}", (image.n_tokens,), "", None)


@dataclass(frozen=True, slots=True)
class Said:
    """One turn: texts and pictures in reading order."""

    role: Role
    content: tuple[str | Picture, ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question with all that its answer depends on. There are no defaults, so that nothing is
    left out by oversight.

    `conversation` ends with the question and begins with the system prompt, if any, whoever set
    it. `weights` is `weights_key` of the model as it was loaded. `adapters` is `adapters_key` of
    those of the decoder and of those of the vision encoder; `told` and `notices` are what a
    reply says of them. `schema` is the text of one. `rated_by` is the version of what gives
    the confidence, None where nothing does.
    """

    conversation: Sequence[Said]
    model: str
    weights: str
    quantization: str
    runtime: Mapping[str, str]
    context_length: int
    adapters: Hashable
    told: Sequence[ActiveAdapter]
    notices: Sequence[str]
    sampling: Sampling
    schema: str | None
    rated_by: str | None

    @cached_property
    def key(self) -> bytes:
        """SHA-256 of the whole: equal keys are the same question to the same model."""
        return self._digest([_exact(said) for said in self.conversation])

    @cached_property
    def frame(self) -> bytes | None:
        """SHA-256 of the whole but the pixels of its one picture, whose shape counts, with the
        question's wording `loosened`. None where there is more than one picture, or no sketch."""
        if self.sketch is None:
            return None
        return self._digest(["near", *(_loose(said) for said in self.conversation)])

    @cached_property
    def sketch(self) -> Sketch | None:
        """Of the one picture of the conversation."""
        pictures = [p for said in self.conversation for p in said.content if not isinstance(p, str)]
        return pictures[0].sketch if len(pictures) == 1 else None

    @property
    def repeatable(self) -> bool:
        """Whether the same question gets the same answer: greedy decoding, or a fixed seed."""
        return self.sampling.temperature == 0 or self.sampling.seed is not None

    def _digest(self, conversation: list[Any]) -> bytes:
        parts = {
            "version": [__version__, ANSWERS_VERSION],
            "conversation": conversation,
            "model": [self.model, self.weights, self.quantization, dict(self.runtime)],
            "context_length": self.context_length,
            "adapters": [repr(self.adapters), [asdict(a) for a in self.told], list(self.notices)],
            "sampling": asdict(self.sampling),
            "schema": self.schema,
            "rated_by": self.rated_by,
        }
        # In ASCII, so that lone surrogates are no trouble; a number of numpy's is its value.
        text = json.dumps(parts, sort_keys=True, default=lambda value: value.item())
        return hashlib.sha256(text.encode("ascii")).digest()


def _exact(said: Said) -> list[Any]:
    return [said.role, [_part(part, said.role) for part in said.content]]


def _part(part: str | Picture, role: Role) -> Any:
    if isinstance(part, str):
        # System prompts and answers are as they are: nobody types these a second time.
        return normalised(part) if role == "user" else part
    return {"picture": [part.content, part.shape, part.detail, part.budget]}


def _loose(said: Said) -> list[Any]:
    parts: list[Any] = []
    for part in said.content:
        if isinstance(part, str):
            parts.append(loosened(part) if said.role == "user" else part)
        else:
            parts.append({"like": [part.shape, part.detail, part.budget]})
    return [said.role, parts]

"""Where the two parts of a model run."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = r"[a-z][a-z0-9_]*"
_SPELLING = re.compile(rf"(?:({_WORD})\+)?({_WORD})")


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    """The runtime of the vision encoder and that of the language model.

    Spelled `llamacpp` where one runtime has both, `onnx+llamacpp` where the vision
    encoder runs on the first and the language model on the second.
    """

    vision: str
    language: str

    @classmethod
    def parse(cls, text: str) -> Placement:
        """Raises ValueError for what is no placement."""
        match = _SPELLING.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no placement: use `llamacpp` or `onnx+llamacpp`")
        vision, language = match.groups()
        return cls(vision or language, language)

    def __str__(self) -> str:
        return self.language if self.vision == self.language else f"{self.vision}+{self.language}"

"""How likely a model finds a text, on the runtime and with the weights that users have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm.adapters.resident import ActiveSet, Resident
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Logits
from edgevlm.engine.sampling import log_normalizer
from edgevlm.families.base import Turn
from edgevlm.model import Model


@dataclass(frozen=True, slots=True)
class Score:
    """Negative log probability of so many tokens, in nats."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.nats / self.tokens


class Scorer:
    """Texts by the logits of a context: each token given all before it (teacher forcing)."""

    def __init__(self, model: Model, adapter: Resident | None = None) -> None:
        self._family = model.family
        self._context = model.language.new_context()
        if adapter is not None:
            self._context.use_adapters(ActiveSet([(adapter, None)]).decoder)
        self._held: list[int] = []

    def answer(self, question: str, answer: str, said: str = "") -> Score:
        """An answer to a question, without the token that ends it and without `said`, which it
        begins with."""
        asked = Turn("user", (question,))
        before = self._ids([asked])
        whole = self._ids([asked, Turn("assistant", (answer,))])
        end = next(i for i in range(len(before), len(whole)) if whole[i] in self._family.stop_ids)
        decode, begin = self._family.tokenizer.decode, len(before)
        given = next(
            at for at in range(begin, end) if decode(whole[begin:at]).lstrip().startswith(said)
        )
        return self._score(whole[:end], given)

    def plain(self, given: str, text: str) -> Score:
        """A text behind another, with no conversation around them."""
        encode = self._family.tokenizer.encode
        before = encode(given, add_special_tokens=False).ids
        ids = encode(given + text, add_special_tokens=False).ids
        return self._score(ids, len(before))

    def _ids(self, turns: Sequence[Turn]) -> list[int]:
        return [
            id_
            for part in self._family.render(turns).parts
            if isinstance(part, tuple)
            for id_ in part
        ]

    def _score(self, ids: Sequence[int], given: int) -> Score:
        """Of the tokens from `given` on; what the context holds already is not computed again."""
        kept = 0
        while kept < min(len(self._held), given - 1) and self._held[kept] == ids[kept]:
            kept += 1
        self._context.truncate(kept)
        logits = self._extend(ids[kept:given])
        nats = 0.0
        for at in range(given, len(ids)):
            nats += log_normalizer(logits, np.empty_like(logits)) - float(logits[ids[at]])
            if at + 1 < len(ids):
                logits = self._extend(ids[at : at + 1])
        self._held = list(ids[:-1])
        return Score(nats, len(ids) - given)

    def _extend(self, ids: Sequence[int]) -> Logits:
        return self._context.extend([np.array(ids, np.int64)], Cancel())

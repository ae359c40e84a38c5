"""A slot, as llama.cpp's server calls it: one context of a model that answers one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from edgevlm.adapters.resident import ActiveSet
from edgevlm.devices.memory import peak_rss_bytes
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Logits
from edgevlm.engine.decode import LogitMask, decode
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Prompt
from edgevlm.engine.sampling import Sampling
from edgevlm.engine.schema import Schema
from edgevlm.errors import Interrupted, PromptTooLong
from edgevlm.judge import Judge, Rating, Subject
from edgevlm.messages import FinishReason, Reply, Token, Usage
from edgevlm.model import Model
from edgevlm.stream import Clock, collect


@dataclass(eq=False, slots=True)
class Request:
    """What an answer is computed with, and what there is of it so far: its `rating` and, once its
    prompt was read, `usage` and `tokens`."""

    sampling: Sampling
    schema: Schema | None
    adapters: ActiveSet
    subject: Subject = field(default_factory=Subject)
    cancel: Cancel = field(default_factory=Cancel)
    clock: Clock = field(default_factory=Clock)
    load_ms: float = 0.0
    rating: Rating | None = None
    usage: Usage = field(default_factory=Usage)
    tokens: list[Token] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens).strip()


class Slot:
    """Answers of one thread at a time; it keeps what it computed for the next prompt. `judge`
    says how sure they are."""

    def __init__(self, model: Model, judge: Judge) -> None:
        self.model = model
        self._judge = judge
        self._context = PrefixContext(model.language.new_context())

    @property
    def length(self) -> int:
        """How many positions its context holds."""
        return self._context.length

    def shared(self, prompt: Prompt, adapters: ActiveSet) -> int:
        """How many positions of `prompt` the context holds already."""
        return self._context.shared(prompt, adapters.decoder, adapters.vision)

    def answer(
        self, prepare: Callable[[], Prompt], request: Request
    ) -> Generator[Token, None, Reply]:
        """Yield the tokens that answer the prompt of `prepare`, and return the reply.

        An interrupt anywhere ends the answer as `cancelled`, with what was said so far.
        Raises PromptTooLong, RuntimeFailed, and what `prepare` and `Model.embed` raise.
        """
        mask = self._mask(request.schema)
        rating = request.rating = self._judge.begin(request.adapters.told, request.subject)
        prompt, kept = Prompt(()), 0
        finish: FinishReason = "cancelled"
        try:
            prompt = prepare()
            self._check_room(prompt)
            self._context.use_adapters(request.adapters.decoder, request.adapters.vision)
            logits, kept = self._prefill(prompt, request)
            request.usage = Usage(prompt.length, prompt.image_tokens, kept)
            steps = decode(
                _pooled(logits, rating),
                lambda token_id: _pooled(self._context.extend(token_id, request.cancel), rating),
                self.model.family.tokenizer,
                request.sampling,
                stop_ids=self.model.family.stop_ids,
                cancel=request.cancel,
                seen=[i for part in prompt.parts if isinstance(part, tuple) for i in part],
                room=self.model.language.context_length - prompt.length,
                mask=mask,
            )
            finish = yield from collect(steps, request.tokens, request.clock)
        except Interrupted:
            pass
        usage = Usage(prompt.length, prompt.image_tokens, kept, len(request.tokens))
        rated = rating.of(request.tokens, usage)
        return Reply(
            text=request.text,
            tokens=tuple(request.tokens),
            model=self.model.name,
            runtime=self.model.runtime,
            quantization=self.model.quantization,
            finish_reason=finish,
            usage=usage,
            confidence=None if rated is None else rated.confidence,
            unsure=rated is not None and rated.unsure,
            timings=request.clock.timings(len(request.tokens), request.load_ms),
            adapter=request.adapters.told,
            notices=request.adapters.notices,
            parsed=_parsed(request, mask),
            structured=request.schema is not None,
            peak_rss_bytes=peak_rss_bytes(),
        )

    def close(self) -> None:
        self._context.close()

    def _mask(self, schema: Schema | None) -> LogitMask | None:
        return None if schema is None else self.model.grammars.mask(schema.text)

    def _check_room(self, prompt: Prompt) -> None:
        most = self.model.language.context_length
        if prompt.length >= most:
            raise PromptTooLong(
                f"The conversation is {prompt.length} tokens long"
                f" ({prompt.image_tokens} of them pictures) and {self.model.name} holds {most}.",
                hint="Ask something shorter, send fewer pictures, or begin a new conversation.",
            )

    def _prefill(self, prompt: Prompt, request: Request) -> tuple[Logits, int]:
        before = time.perf_counter()
        embeddings = {
            i: self.model.embed(prompt.images[i], request.cancel, request.adapters.vision)
            for i in self._context.needs(prompt)
        }
        request.clock.vision = time.perf_counter() - before
        request.cancel.check()
        return self._context.prefill(prompt, embeddings.__getitem__, request.cancel)


def _pooled(logits: Logits, rating: Rating) -> Logits:
    if rating.pool is not None:
        rating.pool.add(logits)
    return logits


def _parsed(request: Request, mask: LogitMask | None) -> object:
    if request.schema is None or mask is None or not mask.finished:
        return None
    return request.schema.parse(request.text)

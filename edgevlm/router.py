"""Who answers: the cache, this device, or a cloud model where its owner allows it.

    question ── cache ──▶ an answer of before
        └─ policy ── local answer ── confidence ── policy ──▶ local │ "unsure" │ cloud

What is sent, and why, is on the reply and in the log. A cloud that fails costs nothing but time:
the answer from here stands, and says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace

from edgevlm.cache import AnswerCache, Asked
from edgevlm.conversation import Shown, Spoken, turns_of
from edgevlm.devices.memory import peak_rss_bytes
from edgevlm.engine.adapter import adapters_key, without_zeros
from edgevlm.engine.prompt import Prompt
from edgevlm.errors import CloudError, Interrupted, UsageError
from edgevlm.judge import Judge
from edgevlm.messages import FinishReason, Message, Reply, Route, Sent, Token, Usage
from edgevlm.model import Model
from edgevlm.remote.model import RemoteModel, RemoteSlot
from edgevlm.routing.call import CloudStream, Receipt
from edgevlm.routing.cloud import Cloud
from edgevlm.routing.log import RouteLog
from edgevlm.routing.policy import Case, Policy, Verdict
from edgevlm.routing.question import question_type
from edgevlm.routing.request import AnswerOptions
from edgevlm.settings import Settings
from edgevlm.slot import Request, Slot

# An answer whose first tokens make it less likely right than this isn't read to its end, where
# the cloud would be asked in the end anyway.
HOPELESS = 0.2


class Router:
    """Answers of one conversation, each from where the route says."""

    def __init__(self, model: Model, settings: Settings, route: str) -> None:
        """Raises what `set_route` does."""
        self._model = model
        self._settings = settings
        self._cloud: Cloud | None = None
        # Pictures of which only what the model makes of them is still needed.
        self._spent: list[Shown] = []
        self.set_route(route)
        self._judge = Judge(model, settings)
        self._slot = Slot(model, self._judge)
        self._cache = AnswerCache(settings)
        self._log = RouteLog(settings.home, prompts=settings.log_prompts)

    def set_route(self, route: str) -> None:
        """Raises CloudNotAllowed for `cloud` where no cloud was set up, or its file is broken."""
        policy, cloud = policy_of(route, self._settings)
        if self._cloud is not None:
            self._cloud.close()
        self._policy, self._cloud = policy, cloud

    def answer(
        self,
        before: Sequence[Spoken],
        system: str | None,
        speak: Callable[[], Spoken],
        request: Request,
    ) -> Generator[Token, None, Reply]:
        """Yield the tokens of the answer to what `speak` reads, after all that was said `before`.

        Raises what `Slot.answer` and `speak` do, and CloudError where the route is `cloud` and
        that can't answer.
        """
        try:
            spoken = speak()
        except Interrupted:
            return (yield from self._slot.answer(_stopped, request))
        said = whole(before, system, spoken)
        asked = self._asked(said, request)
        found = self._found(asked, request)
        if found is not None:
            yield from found.tokens
            reply, receipt = found, None
        else:
            reply, receipt = yield from self._computed(said, spoken, request)
            if asked is not None and receipt is None:
                self._cache.put(asked, reply)
        self._log.add(reply, receipt=receipt, question=spoken.text)
        if self._cloud is None:  # no one but the model will ask for their pixels
            self._spent += spoken.shown
        while self._spent and found is None:  # a cached answer doesn't wait for their preparing
            self._spent.pop().let_go(hashed=asked is not None)
        return reply

    def close(self) -> None:
        self._slot.close()
        self._cache.close()
        self._log.close()
        if self._cloud is not None:
            self._cloud.close()

    def _computed(
        self, said: Sequence[Spoken], spoken: Spoken, request: Request
    ) -> Generator[Token, None, tuple[Reply, Receipt | None]]:
        policy, case = self._case(said, spoken, request)
        before = policy.before(case)
        if before.decision == "cloud":
            return (yield from self._read(self._stream(case, request), before, request))
        if not policy.may_escalate:
            reply = yield from self._slot.answer(lambda: self._prompt(said), request)
            return _decided(reply, _after(policy, case, before, reply)), None
        # Where the cloud may yet answer, nobody is shown words that it would take back.
        here = self._held(said, request, policy, case)
        if here is None:
            verdict = policy.stopped(len(request.tokens))
        elif here.finish_reason == "cancelled":
            return here, None
        else:
            verdict = _after(policy, case, before, here)
        if verdict.decision == "cloud":
            return (yield from self._escalated(said, case, verdict, request, here))
        assert here is not None
        yield from here.tokens
        return _decided(here, verdict), None

    def _held(
        self, said: Sequence[Spoken], request: Request, policy: Policy, case: Case
    ) -> Reply | None:
        """The answer from here, read to its end; None where it was not worth that."""
        with closing(self._slot.answer(lambda: self._prompt(said), request)) as answer:
            while True:
                try:
                    next(answer)
                except StopIteration as end:
                    reply: Reply = end.value
                    return reply
                if policy.hopeless(case, request.tokens) or self._is_hopeless(
                    policy, case, request
                ):
                    return None

    def _is_hopeless(self, policy: Policy, case: Case, request: Request) -> bool:
        """Whether its first tokens say that the answer will be taken back for the cloud's."""
        if request.rating is None:
            return False
        so_far = request.rating.so_far(request.tokens, request.usage)
        if so_far is None or so_far.confidence >= HOPELESS:
            return False
        return policy.would_ask(case, so_far.confidence)

    def _escalated(
        self,
        said: Sequence[Spoken],
        case: Case,
        verdict: Verdict,
        request: Request,
        here: Reply | None,
    ) -> Generator[Token, None, tuple[Reply, Receipt]]:
        """The cloud's answer; where it fails before its first word, the one from here."""
        stream = self._stream(case, request)
        try:
            return (yield from self._read(stream, verdict, request))
        except CloudError as error:
            if stream.text:
                raise
            fallen = self._policy.fell_back(verdict, error)
        if here is None:  # it was stopped half way
            request = replace(request, tokens=[])
            here = yield from self._slot.answer(lambda: self._prompt(said), request)
        else:
            yield from here.tokens
        return _decided(here, fallen, stream.receipt.sent), stream.receipt

    def _stream(self, case: Case, request: Request) -> CloudStream:
        assert self._cloud is not None
        return self._cloud.stream(case.messages, case.options, cancel=request.cancel)

    def _read(
        self, stream: CloudStream, verdict: Verdict, request: Request
    ) -> Generator[Token, None, tuple[Reply, Receipt]]:
        finish: FinishReason = "stop"
        try:
            with closing(stream):
                for piece in stream:
                    request.clock.tick()
                    yield Token(-1, piece, math.nan)
        except Interrupted:
            finish = "cancelled"
        return _cloud_reply(stream, verdict, request, finish), stream.receipt

    def _prompt(self, said: Sequence[Spoken]) -> Prompt:
        return self._model.family.render(turns_of(said))

    def _case(
        self, said: Sequence[Spoken], spoken: Spoken, request: Request
    ) -> tuple[Policy, Case]:
        """The policy, and the question as it sees it. A conversation that can't be sent whole, for
        a video in it, stays here."""
        policy, sampling, schema = self._policy, request.sampling, request.schema
        messages: list[Message] = []
        if self._cloud is not None:
            try:
                messages = [each.message() for each in said]
            except UsageError:
                if policy.route == "cloud":
                    raise
                policy = Policy("local", None)
        case = Case(
            messages,
            AnswerOptions(
                sampling.max_tokens,
                sampling.temperature,
                sampling.stop,
                None if schema is None else json.loads(schema.text),
            ),
            question_type(spoken.text),
            [shown.stats for shown in spoken.shown],
        )
        return policy, case

    def _asked(self, said: Sequence[Spoken], request: Request) -> Asked | None:
        if self._cache.mode == "off" or not self._model.weights:
            return None
        adapters, model = request.adapters, self._model
        near = self._cache.near
        return Asked(
            conversation=[spoken.said(near=near) for spoken in said],
            model=model.name,
            weights=model.weights,
            quantization=model.quantization,
            runtime=model.runtime,
            context_length=model.context_length,
            adapters=tuple(
                adapters_key(without_zeros(part)) for part in (adapters.decoder, adapters.vision)
            ),
            told=adapters.told,
            notices=adapters.notices,
            sampling=request.sampling,
            schema=None if request.schema is None else request.schema.text,
            rated_by=self._judge.version(adapters.told),
        )

    def _found(self, asked: Asked | None, request: Request) -> Reply | None:
        if asked is None or self._policy.route == "cloud":
            return None
        found = self._cache.get(asked)
        # One that was unsure is no reason not to ask the cloud by now.
        if found is None or (found.unsure and self._policy.may_escalate):
            return None
        request.clock.tick()
        schema = request.schema
        return replace(
            found,
            timings=request.clock.timings(1, request.load_ms),
            peak_rss_bytes=peak_rss_bytes(),
            parsed=schema.parse(found.text) if schema is not None else None,
        )


def _stopped() -> Prompt:
    """The prompt of a question that was stopped while it was read."""
    raise Interrupted("Stopped.")


def _after(policy: Policy, case: Case, before: Verdict, reply: Reply) -> Verdict:
    return policy.after(case, before, reply.confidence, unsure=reply.unsure)


class Direct:
    """Answers of a server, which routes by itself (see `Router`)."""

    def __init__(self, model: RemoteModel) -> None:
        self._model = model
        self._slot = RemoteSlot(model)

    def set_route(self, route: str) -> None:
        """Any will do: the server decides."""

    def answer(
        self,
        before: Sequence[Spoken],
        system: str | None,
        speak: Callable[[], Spoken],
        request: Request,
    ) -> Generator[Token, None, Reply]:
        """As a router's. Raises what `RemoteSlot.answer` and `speak` do."""

        def prepare() -> Prompt:
            return self._model.family.render(turns_of(whole(before, system, speak())))

        return (yield from self._slot.answer(prepare, request))

    def close(self) -> None:
        self._slot.close()


def policy_of(route: str, settings: Settings) -> tuple[Policy, Cloud | None]:
    """Raises CloudNotAllowed for `cloud` where no cloud was set up, or its file is broken."""
    cloud = None if route in ("local", "split") else Cloud.from_settings(settings)
    try:
        return Policy(route, cloud), cloud
    except BaseException:
        if cloud is not None:
            cloud.close()
        raise


def whole(before: Sequence[Spoken], system: str | None, spoken: Spoken) -> list[Spoken]:
    """The conversation with its newest turn, behind the system prompt if there is one."""
    prompt = [Spoken("system", (system,))] if system else []
    return [*prompt, *before, spoken]


def _decided(reply: Reply, verdict: Verdict, sent: Sent | None = None) -> Reply:
    route = Route("local", verdict.reason, sent or Sent())
    return replace(reply, route=route, unsure=verdict.unsure)


def _cloud_reply(
    stream: CloudStream, verdict: Verdict, request: Request, finish: FinishReason
) -> Reply:
    whole = finish == "stop"
    answer = stream.answer if whole else None
    receipt, schema = stream.receipt, request.schema
    text = stream.text
    tokens = answer.tokens if answer is not None else None
    return Reply(
        text=text,
        tokens=(),
        model=receipt.model,
        runtime={"vision": receipt.provider, "language": receipt.provider},
        quantization="",
        finish_reason=answer.finish_reason if answer is not None else finish,
        usage=Usage() if tokens is None else Usage(tokens.prompt, 0, 0, tokens.completion),
        timings=request.clock.timings(0 if tokens is None else tokens.completion, request.load_ms),
        route=Route("cloud", verdict.reason, receipt.sent, receipt.cost_usd),
        parsed=schema.parse(text) if schema is not None and whole else None,
        structured=schema is not None,
    )

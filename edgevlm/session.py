"""A conversation with one model: the object that an application holds."""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any

from edgevlm.adapters.base import model_for
from edgevlm.adapters.choice import AdapterChoice, Name, Wanted, read_choice
from edgevlm.adapters.resident import ActiveSet
from edgevlm.adapters.store import AdapterStore
from edgevlm.conversation import Shown, Spoken, turns_of
from edgevlm.engine.cancel import Cancel
from edgevlm.errors import Interrupted, NotSupported, UsageError
from edgevlm.families.base import Detail, Turn
from edgevlm.families.video import Content, watch
from edgevlm.judge import Subject
from edgevlm.media import MediaLimits, load_image, open_video
from edgevlm.messages import Reply, Token
from edgevlm.model import AUTO, Model, Notice, load_model
from edgevlm.question import Question
from edgevlm.remote.model import RemoteModel, connect
from edgevlm.router import Direct, Router, policy_of
from edgevlm.settings import ROUTES, Settings, load_settings
from edgevlm.slot import Request
from edgevlm.stream import Clock, Stream

if TYPE_CHECKING:
    from edgevlm.models.progress import Progress

_LIVE: weakref.WeakSet[Session] = weakref.WeakSet()
_EXIT_WAIT_S = 2.0
_ending = False


@atexit.register
def _stop_answers() -> None:
    """End what daemon threads still compute: a runtime that comes back to an interpreter
    that is gone aborts the process."""
    global _ending
    _ending = True
    until = time.monotonic() + _EXIT_WAIT_S
    while any(session.answering for session in list(_LIVE)) and time.monotonic() < until:
        for session in list(_LIVE):
            session.cancel()
        time.sleep(0.01)


class Session:
    """A conversation with one model on this device.

    `model` is a catalog name, a hub id, a folder, `"auto"`, or a `Model` that other
    sessions share. `adapter` is what `use_adapters` takes; `"auto"` is a model that it was made
    for, where it says so. With `server`, the URL of a running
    `edgevlm serve`, its model answers and nothing is loaded here, or with route `split` the half
    of it that sees: pictures are encoded here, and their embeddings are sent. Loading happens
    here, so that the first question is fast. Questions of one session come from one thread at
    a time; `cancel` from any.

    `system` is the system prompt. Where none is given, an adapter that is on alone may bring
    its own; an empty one keeps it out.

    Raises what `load_model` and `use_adapters` raise, and CloudError where there is no server.
    """

    def __init__(
        self,
        model: str | Model | RemoteModel | None = None,
        runtime: str | None = None,
        route: str | None = None,
        system: str | None = None,
        settings: Settings | None = None,
        *,
        adapter: AdapterChoice = None,
        server: str | None = None,
        progress: Progress | None = None,
        notice: Notice | None = None,
    ) -> None:
        wanted = read_choice(adapter)
        if not isinstance(system, (str, NoneType)):
            raise UsageError(f"A system prompt can't be {system!r}.", hint="Give a str.")
        self.settings = settings or load_settings()
        self.route = route or self.settings.route
        self._split = server is not None and self.route == "split"
        self._check_route(self.route)
        self._owns_model = not isinstance(model, (Model, RemoteModel))
        self.model: Model | RemoteModel
        if isinstance(model, (Model, RemoteModel)):
            self.model = model
        elif server is not None:
            self.model = connect(
                server,
                model,
                self.settings,
                split=self.route == "split",
                runtime=runtime,
                progress=progress,
                notice=notice,
            )
        else:
            # Before any download, which a name that nobody knows must not cost.
            found = [AdapterStore(self.settings).resolve(name) for name in wanted]
            if (model or self.settings.model) == AUTO:
                model = model_for(adapter.manifest.bases for adapter in found) or AUTO
            self.model = load_model(
                model, runtime=runtime, settings=self.settings, progress=progress, notice=notice
            )
        try:
            self._adapters = self._loaded(wanted)
            self._answers = _answers_of(self.model, self.settings, self.route)
        except BaseException:
            if self._owns_model:
                self.model.close()
            raise
        self._system = system
        self._spoken: list[Spoken] = []
        self._active: Stream | None = None
        self._cancel = Cancel()
        self._load_ms = self.model.load_ms if self._owns_model else 0.0
        self._closed = False
        _LIVE.add(self)

    def ask(
        self,
        prompt: str | None = None,
        images: Sequence[Any] | None = (),
        *,
        video: Any = None,
        detail: Detail = "auto",
        image_tokens: int | None = None,
        schema: Any = None,
        adapter: AdapterChoice = None,
        **sampling: Any,
    ) -> Reply:
        """Answer a question, about `images` or a `video` if any and else about those before.

        An image is a path, an https URL, bytes, a PIL image or a numpy array; `image_tokens`
        is the most that each may cost, where `detail` would give it more tiles. A video is a
        path, an https URL or bytes; up to 50 of its frames are shown, as many as there is
        room for beside the question and `max_tokens` of answer. `schema` is a JSON Schema
        (dict or text) or a class that pydantic knows: the answer is JSON of that shape, and
        `reply.parsed` its value. `adapter` is for this answer what `use_adapters` sets for
        all; an empty list is the base alone. `sampling` takes the fields of `edgevlm.Sampling`
        (max_tokens, temperature, stop, ...).

        Raises UsageError (of which MediaError, PromptTooLong and TemplateError are kinds),
        RuntimeFailed, what `use_adapters` raises, and NotSupported or ModelCorrupt where the
        model's parts don't fit together, it can't see videos, or an extra is missing; the
        conversation then stays as it was.
        """
        stream = self.stream(
            prompt,
            images,
            video=video,
            detail=detail,
            image_tokens=image_tokens,
            schema=schema,
            adapter=adapter,
            **sampling,
        )
        for _ in stream:
            pass
        return stream.reply

    def stream(
        self,
        prompt: str | None = None,
        images: Sequence[Any] | None = (),
        *,
        video: Any = None,
        detail: Detail = "auto",
        image_tokens: int | None = None,
        schema: Any = None,
        adapter: AdapterChoice = None,
        **sampling: Any,
    ) -> Stream:
        """`ask`, token by token. A new question ends an unfinished stream."""
        question = Question.of(
            prompt,
            images,
            video,
            detail=detail,
            image_tokens=image_tokens,
            schema=schema,
            adapter=adapter,
            sampling=sampling,
        )
        if _ending:
            raise Interrupted("The program is ending.")
        if self._active is not None:
            self._active.close()
        self._cancel = Cancel()
        self._active = Stream(self._answer(question, self._adapters, self._cancel, Clock()))
        return self._active

    @property
    def adapters(self) -> dict[str, float]:
        """The scale of each adapter that is on, by its name."""
        return {active.name: active.scale for active in self._adapters.told}

    def use_adapters(self, adapters: AdapterChoice) -> None:
        """Answer with these adapters from the next question on, and with no others.

        A name, `"name:0.8"`, a folder (a `Path` is never read for a scale), a list of these,
        a mapping to scales, or None, which is the base alone. A scale from -10 to 10 is what
        an adapter's update is multiplied by; where none is given it is the adapter's own, 1
        as a rule. Each is loaded once for all sessions of the model.

        What the conversation has computed belongs to the adapters that computed it: after a
        swap, and after a swap back, the next answer computes the whole prompt anew, all but
        the pictures' embeddings by the same adapters of the vision encoder.

        Raises UsageError for a scale or name that can't be, or the same adapter twice;
        UnknownAdapter, AdapterCorrupt, AdapterMismatch for one of another base, and
        NotSupported where the runtime can't apply it. The session then keeps those it has.
        """
        self._adapters = self._loaded(read_choice(adapters))

    @contextmanager
    def adapter(self, name: Name, scale: float | None = None) -> Iterator[None]:
        """Have an adapter on within the block, beside the others, or at another scale than
        before; behind it all is as it was. Raises what `use_adapters` raises."""
        ((wanted, checked),) = read_choice({name: scale}).items()
        before = self._adapters
        self._adapters = before.having(self.model.adapter(wanted, self.settings), checked)
        try:
            yield
        finally:
            if not self._closed:  # which has let its adapters go
                self._adapters = before

    @property
    def answering(self) -> bool:
        """Whether a thread is computing an answer at this moment."""
        return self._active is not None and self._active.running

    def set_route(self, route: str) -> None:
        """Say who may answer from now on: `local`, `auto` or `cloud`. A session that began as
        `split` stays so, and no other becomes it.

        Raises UsageError, and CloudNotAllowed for `cloud` where no cloud model was set up.
        """
        self._check_route(route)
        self._answers.set_route(route)
        self.route = route

    def _check_route(self, route: str) -> None:
        if route not in ROUTES:
            raise UsageError(f"There is no route {route!r}.", hint=f"Routes: {', '.join(ROUTES)}.")
        if (route == "split") != self._split:
            raise UsageError(
                "Split inference is for a whole session, with a server.",
                hint='Use Session(server=URL, route="split").',
            )
        if route == "cloud":  # told before a model is fetched
            _, cloud = policy_of(route, self.settings)
            if cloud is not None:
                cloud.close()

    def cancel(self) -> None:
        """Stop the answer under way, from any thread. What was said so far is kept."""
        self._cancel.set()

    def reset(self) -> None:
        """Begin a new conversation on the same model, with the same adapters."""
        if self._active is not None:
            self._active.close()
            self._active = None
        self._spoken.clear()

    def close(self) -> None:
        """Stop the answer under way, and let the model go unless others share it."""
        self._closed = True
        self.cancel()
        if self._active is not None:
            with suppress(UsageError):  # a thread is inside it, and ends it by itself
                self._active.close()
        self._answers.close()
        self._adapters = ActiveSet()
        if self._owns_model:
            self.model.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _loaded(self, wanted: Wanted) -> ActiveSet:
        return ActiveSet(
            [(self.model.adapter(name, self.settings), scale) for name, scale in wanted.items()]
        )

    def _answer(
        self, question: Question, adapters: ActiveSet, cancel: Cancel, clock: Clock
    ) -> Generator[Token, None, Reply]:
        if question.adapters is not None:
            adapters = self._loaded(question.adapters)
        request = Request(
            question.sampling,
            question.schema,
            adapters,
            Subject(question.message.text),
            cancel=cancel,
            clock=clock,
            load_ms=self._load_ms,
        )
        system = adapters.system if self._system is None else self._system
        spoken: Spoken | None = None

        def speak() -> Spoken:
            nonlocal spoken
            spoken = self._speak(question, system, cancel)
            if spoken.shown:
                request.subject = replace(request.subject, picture=spoken.shown[0].stats)
            return spoken

        text, finish = "", "cancelled"
        try:
            reply = yield from self._answers.answer(self._spoken, system, speak, request)
            text, finish, self._load_ms = reply.text, reply.finish_reason, 0.0
        except GeneratorExit:
            self._remember(spoken, request.text, finish)
            raise
        self._remember(spoken, text, finish)
        return reply

    def _remember(self, spoken: Spoken | None, text: str, finish: str) -> None:
        """Keep the exchange, unless it was stopped before its first word."""
        if spoken is not None and (text or finish != "cancelled"):
            self._spoken += [spoken, Spoken("assistant", (text,))]

    def _speak(self, question: Question, system: str | None, cancel: Cancel) -> Spoken:
        limits = media_limits(self.settings)
        message, family = question.message, self.model.family
        shown = tuple(
            Shown(
                load_image(source, limits=limits),
                question.detail,
                question.image_tokens,
                family.preprocess,
            )
            for source in message.images
        )
        frames: Content = ()
        if message.video is not None:
            frames = self._watch(question, system, tuple(s.image for s in shown), cancel)
        return Spoken("user", (*shown, *frames, message.text))

    def _watch(
        self, question: Question, system: str | None, before: Content, cancel: Cancel
    ) -> Content:
        """What is shown of the question's video, after `before` and with room to answer."""
        layout = self.model.family.video
        if layout is None:
            raise NotSupported(
                f"{self.model.name} was not made to see videos.",
                hint="Use a SmolVLM2 model, such as smolvlm2-500m, or send pictures.",
            )
        message, answer = question.message, question.sampling.max_tokens
        room, family = self.model.context_length, self.model.family
        system_turn = [Turn("system", (system,))] if system else []

        def fits(content: Content) -> bool:
            turn = Turn("user", (*before, *content, message.text))
            prompt = family.render([*system_turn, *turns_of(self._spoken), turn])
            return prompt.length + answer <= room

        limits = media_limits(self.settings)
        with open_video(message.video, limits=limits, check=cancel.check) as video:
            return watch(layout, video, fits)


def _answers_of(model: Model | RemoteModel, settings: Settings, route: str) -> Router | Direct:
    return Router(model, settings, route) if isinstance(model, Model) else Direct(model)


def media_limits(settings: Settings) -> MediaLimits:
    return MediaLimits(max_pixels=settings.max_pixels, allow_network=not settings.offline)

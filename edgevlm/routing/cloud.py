"""The model that is asked when this device's own does not suffice, if its owner allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgevlm.engine.cancel import Cancel
from edgevlm.errors import CloudNotAllowed
from edgevlm.messages import Message
from edgevlm.routing import call
from edgevlm.routing.attempt import Dialect
from edgevlm.routing.breaker import Breaker
from edgevlm.routing.call import CloudAnswer, CloudStream, Office
from edgevlm.routing.consent import Kind, require
from edgevlm.routing.keys import Key, find_key
from edgevlm.routing.ledger import Ledger
from edgevlm.routing.prices import dollars
from edgevlm.routing.provider import Provider, read_provider
from edgevlm.routing.request import AnswerOptions, ChatRequest, chat_request, worst_tokens
from edgevlm.settings import Settings

_FIRST_GUESS_S = 3.0  # that an answer takes, before there was one
_NOTHING = AnswerOptions()


class Cloud:
    """A provider with the consent to ask it, its ledger and its breaker. Any thread may ask.

    `ledger`, `breaker`, `wait` and `environ` (which holds the key) have other clocks and other
    keys in tests.
    """

    def __init__(
        self,
        home: Path,
        provider: Provider,
        *,
        offline: bool = False,
        ledger: Ledger | None = None,
        breaker: Breaker | None = None,
        wait: call.Wait = call.wait,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.provider = provider
        self.ledger = ledger or Ledger(home)
        self._home = home
        self._offline = offline
        self._environ = environ
        self._office = Office(provider, self.ledger, breaker or Breaker(), Dialect(), wait)
        self._seconds = _FIRST_GUESS_S

    @classmethod
    def from_settings(cls, settings: Settings) -> Cloud | None:
        """The cloud that `edgevlm cloud set` named, None where none was. Raises CloudNotAllowed
        where its file can't be read."""
        provider = read_provider(settings.home)
        return None if provider is None else cls(settings.home, provider, offline=settings.offline)

    @property
    def expected_s(self) -> float:
        """How long an answer takes, smoothed over those that came."""
        return self._seconds

    def expected_usd(
        self, messages: Sequence[Message], options: AnswerOptions = _NOTHING
    ) -> float | None:
        """What this would cost: what calls have cost on average, and no more than the most that
        it can. None where the price is unknown. Raises CloudNotAllowed for a broken ledger."""
        worst = self._office.cost(worst_tokens(messages, options, self.provider.limits))
        if worst is None:
            return None
        mean = self.ledger.mean_cost(self.provider)
        return dollars(worst) if mean is None else min(mean, dollars(worst))

    def check(self, messages: Sequence[Message], options: AnswerOptions = _NOTHING) -> None:
        """Raise CloudNotAllowed or CloudUnavailable where this can't be asked now: no network by
        settings, no consent, no key, no budget, or a provider that keeps failing. Nothing is
        sent to find out, and no picture is looked at."""
        self._key_for(messages, options)

    def stream(
        self,
        messages: Sequence[Message],
        options: AnswerOptions = _NOTHING,
        *,
        cancel: Cancel | None = None,
        timeout_s: float | None = None,
    ) -> CloudStream:
        """Ask, and read the answer as it comes. Pictures in `messages` are RGB uint8 [H, W, 3].

        Reading raises what `check` does; CloudRefused, CloudUnavailable or CloudAnswerBroken
        within `timeout_s`; Interrupted as soon as `cancel` is set; UsageError for a video.
        """

        def prepare() -> tuple[ChatRequest, Key | None]:
            key = self._key_for(messages, options)
            return chat_request(messages, options, self.provider.limits), key

        seconds = timeout_s or self.provider.limits.timeout_s
        return CloudStream(self._office, prepare, cancel or Cancel(), seconds, self._took)

    def ask(
        self,
        messages: Sequence[Message],
        options: AnswerOptions = _NOTHING,
        *,
        cancel: Cancel | None = None,
        timeout_s: float | None = None,
    ) -> CloudAnswer:
        """`stream`, read to its end."""
        stream = self.stream(messages, options, cancel=cancel, timeout_s=timeout_s)
        for _ in stream:
            pass
        return stream.answer

    def close(self) -> None:
        self.ledger.close()

    def _key_for(self, messages: Sequence[Message], options: AnswerOptions) -> Key | None:
        """The key, once nothing speaks against its use."""
        if self._offline:
            raise CloudNotAllowed(
                "The network is switched off, so the cloud can't be asked.",
                hint="Unset EDGEVLM_OFFLINE, or use route local.",
            )
        kinds: list[Kind] = ["text"]
        if any(message.images for message in messages):
            kinds.append("image")
        require(self._home, self.provider, kinds)
        key = find_key(self.provider, self._environ)
        self._office.check_rest(self._office.breaker.wait_s())
        worst = self._office.cost(worst_tokens(messages, options, self.provider.limits))
        self.ledger.check(self.provider, worst)
        return key

    def _took(self, seconds: float) -> None:
        self._seconds += (seconds - self._seconds) / 4

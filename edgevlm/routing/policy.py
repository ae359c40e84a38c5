"""Who answers: this device, or the cloud. Every verdict says why, in words for a person.

`local` and `split` never ask the cloud; `cloud` always does, or raises. `auto` does where the
expected gain, in dollars, outweighs what it costs in money, time and privacy; where it would
and can't, the answer from here stands, marked as unsure, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgevlm.errors import CloudError, CloudNotAllowed
from edgevlm.messages import Message, Token
from edgevlm.routing.cloud import Cloud
from edgevlm.routing.gate import Gate, Looked
from edgevlm.routing.prices import dollars_text
from edgevlm.routing.request import AnswerOptions


@dataclass(frozen=True, slots=True)
class Verdict:
    """`unsure` goes into the reply of an answer from here."""

    decision: Literal["local", "cloud"]
    reason: str
    unsure: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be answered: the conversation as the cloud would get it, and what is known of
    the question and its pictures before it is answered."""

    messages: Sequence[Message]
    options: AnswerOptions = field(default_factory=AnswerOptions)
    question_type: str = "other"
    pictures: Sequence[Looked] = ()


class Policy:
    """`stops` maps a number of tokens to the mean logprob below which an answer of that length
    isn't worth reading on; what was calibrated for the model. Empty is never.

    Raises CloudNotAllowed for route `cloud` without one.
    """

    def __init__(
        self,
        route: str,
        cloud: Cloud | None,
        *,
        gate: Gate | None = None,
        stops: Mapping[int, float] | None = None,
    ) -> None:
        if route == "cloud" and cloud is None:
            raise _no_cloud()
        self.route = route
        self._cloud = cloud if route in ("auto", "cloud") else None
        self._gate = gate or Gate()
        self._stops = stops or {}

    @property
    def may_escalate(self) -> bool:
        """Whether an answer from here may yet be taken back for one of the cloud."""
        return self.route == "auto" and self._cloud is not None

    def would_ask(self, case: Case, confidence: float) -> bool:
        """Whether the cloud would be asked for a better answer than one as likely right as this."""
        if not self.may_escalate:
            return False
        return self._weigh(case, confidence, "", unsure=True).decision == "cloud"

    def before(self, case: Case) -> Verdict:
        """Before anything is computed. `cloud` is final; `local` goes on to `after`.

        Raises CloudError where the route is `cloud` and it can't be asked.
        """
        if self.route == "cloud":
            assert self._cloud is not None
            self._cloud.check(case.messages, case.options)
            return Verdict("cloud", f"route cloud: {self._cloud.provider.called} answers")
        finding = self._gate.look(case.question_type, case.pictures)
        if finding is None:
            return Verdict("local", f"route {self.route}: answered on this device")
        if self.route != "auto" or not finding.elsewhere:
            return Verdict("local", finding.reason, unsure=True)
        return self._weigh(case, 0.0, finding.reason, unsure=True)

    def hopeless(self, case: Case, tokens: Sequence[Token]) -> bool:
        """Whether to stop reading and ask the cloud, which could be asked now."""
        least = self._stops.get(len(tokens))
        if least is None or self._cloud is None:
            return False
        if sum(token.logprob for token in tokens) / len(tokens) >= least:
            return False
        return self.would_ask(case, 0.0)

    def stopped(self, tokens: int) -> Verdict:
        """The verdict on an answer that was `hopeless`."""
        assert self._cloud is not None
        reason = f"stopped after {tokens} tokens that promised nothing"
        return Verdict("cloud", f"{reason}: {self._cloud.provider.called} answers")

    def after(
        self, case: Case, before: Verdict, confidence: float | None, *, unsure: bool
    ) -> Verdict:
        """Once there is an answer, with its calibrated probability of being right, if any, and
        whether that is below what was certified."""
        if before.unsure:
            return before
        if confidence is None:
            return Verdict("local", f"{before.reason}; how sure it is, isn't known", unsure=unsure)
        reason = f"confidence {confidence:.2f}"
        if self.route != "auto":
            return Verdict("local", f"route {self.route}: {reason}", unsure=unsure)
        return self._weigh(case, confidence, reason, unsure=unsure)

    def fell_back(self, verdict: Verdict, error: CloudError) -> Verdict:
        """The answer from here after all, since the cloud was to be asked and failed.

        Raises the error again where the route is `cloud`.
        """
        if self.route == "cloud":
            raise error
        return _blocked(verdict.reason, error)

    def _weigh(self, case: Case, confidence: float, reason: str, *, unsure: bool) -> Verdict:
        """Expected gain against expected cost, both in dollars (`Weights`)."""
        if self._cloud is None:
            return _blocked(reason, _no_cloud()) if unsure else Verdict("local", reason)
        weights, called = self._cloud.provider.weights, self._cloud.provider.called
        gain = weights.accuracy - confidence
        pictures = sum(len(message.images) for message in case.messages)
        other = (
            self._cloud.expected_s * weights.second_usd
            + weights.text_usd
            + pictures * weights.picture_usd
        )
        try:
            price = self._cloud.expected_usd(case.messages, case.options)
            if gain * weights.answer_usd <= (price or 0.0) + other:
                return Verdict("local", f"{reason}: asking {called} would gain too little", unsure)
            self._cloud.check(case.messages, case.options)
        except CloudError as error:
            return _blocked(reason, error)
        cost = "at an unknown price" if price is None else f"for about {dollars_text(price)}"
        return Verdict("cloud", f"{reason}: {called} is expected to gain {gain:.2f} {cost}")


def _blocked(reason: str, error: CloudError) -> Verdict:
    return Verdict("local", f"{reason}; the cloud was not asked: {error.message}", unsure=True)


def _no_cloud() -> CloudNotAllowed:
    return CloudNotAllowed(
        "No cloud model is set up.",
        hint="`edgevlm cloud set --base-url URL --model NAME` names one; or use route local.",
    )

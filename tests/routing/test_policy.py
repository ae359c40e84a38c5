from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cloud_parts import MakeCloud
from provider_server import ProviderServer, answers, status

from edgevlm.errors import CloudError, CloudNotAllowed, CloudUnavailable
from edgevlm.messages import Message, Token
from edgevlm.routing.breaker import FAILURES
from edgevlm.routing.cloud import Cloud
from edgevlm.routing.gate import Gate
from edgevlm.routing.policy import Case, Policy, Verdict
from edgevlm.routing.prices import Prices
from edgevlm.routing.provider import Weights

URL = "https://api.example.com/v1"
PIXELS = np.zeros((40, 40, 3), np.uint8)


@dataclass(frozen=True)
class Looked:
    width: int = 640
    height: int = 480
    sharpness: float = 500.0


CASE = Case([Message("user", "What is this?", (PIXELS,))], pictures=(Looked(),))
READ = replace(CASE, question_type="read")
SOME = Verdict("local", "route auto: answered on this device")


@pytest.fixture
def cloud(make_cloud: MakeCloud) -> Cloud:
    """Which costs next to nothing."""
    return make_cloud(URL, prices=Prices(0.001, 0.001))


def tokens(*logprobs: float) -> list[Token]:
    return [Token(1, "a", logprob) for logprob in logprobs]


def test_route_local_never_sends(cloud: Cloud) -> None:
    policy = Policy("local", cloud, gate=Gate(frozenset({"read"})), stops={2: 0.0})
    assert policy.before(CASE) == Verdict("local", "route local: answered on this device")
    assert policy.before(READ).unsure
    after = policy.after(CASE, policy.before(CASE), 0.01, unsure=True)
    assert after == Verdict("local", "route local: confidence 0.01", unsure=True)
    assert not policy.hopeless(CASE, tokens(-9, -9))


def test_route_cloud_sends_or_raises(cloud: Cloud, make_cloud: MakeCloud) -> None:
    verdict = Policy("cloud", cloud).before(CASE)
    assert verdict == Verdict("cloud", "route cloud: m at api.example.com answers")
    with pytest.raises(CloudNotAllowed, match="No cloud model is set up"):
        Policy("cloud", None)
    with pytest.raises(CloudNotAllowed, match="consent"):
        Policy("cloud", make_cloud(URL, allow=("text",))).before(CASE)
    error = CloudUnavailable("gone")
    with pytest.raises(CloudUnavailable, match="gone"):
        Policy("cloud", cloud).fell_back(verdict, error)


def test_auto_sends_what_it_expects_to_gain_by(cloud: Cloud) -> None:
    policy = Policy("auto", cloud)
    sure = policy.after(CASE, SOME, 0.95, unsure=False)
    assert sure.decision == "local"
    assert sure.reason == "confidence 0.95: asking m at api.example.com would gain too little"
    doubtful = policy.after(CASE, SOME, 0.4, unsure=False)
    assert doubtful.decision == "cloud"
    assert doubtful.reason.startswith("confidence 0.40: m at api.example.com is expected to gain")
    assert not doubtful.unsure


@pytest.mark.parametrize(
    "weights",
    [
        Weights(answer_usd=0.0),
        Weights(second_usd=1.0),
        Weights(text_usd=1.0),
        Weights(picture_usd=1.0),
        Weights(accuracy=0.4),
    ],
)
def test_each_weight_can_keep_it_here(make_cloud: MakeCloud, weights: Weights) -> None:
    policy = Policy("auto", make_cloud(URL, prices=Prices(0.001, 0.001), weights=weights))
    assert policy.after(CASE, SOME, 0.4, unsure=True).decision == "local"
    assert policy.after(CASE, SOME, 0.4, unsure=True).unsure


def test_money_can_keep_it_here(make_cloud: MakeCloud) -> None:
    policy = Policy("auto", make_cloud(URL, prices=Prices(1000, 1000)))
    assert policy.after(CASE, SOME, 0.4, unsure=False).decision == "local"


def test_a_picture_is_worth_more_privacy_than_words(make_cloud: MakeCloud) -> None:
    weights = Weights(text_usd=0.0, picture_usd=0.03)
    policy = Policy("auto", make_cloud(URL, prices=Prices(0.001, 0.001), weights=weights))
    words = Case([Message("user", "What is a circle?")])
    assert policy.after(words, SOME, 0.4, unsure=False).decision == "cloud"
    assert policy.after(CASE, SOME, 0.4, unsure=False).decision == "local"


def test_what_calls_have_cost_is_what_the_next_will(make_cloud: MakeCloud) -> None:
    """The most that a picture may cost would keep it here; what it did cost does not."""
    with ProviderServer(answers("A circle.")) as server:
        cloud = make_cloud(server.url, prices=Prices(2.0, 2.0))
        policy = Policy("auto", cloud)
        assert policy.after(CASE, SOME, 0.4, unsure=False).decision == "local"
        cloud.ask(CASE.messages)
        assert policy.after(CASE, SOME, 0.4, unsure=False).decision == "cloud"


def test_an_unknown_price_is_said(make_cloud: MakeCloud) -> None:
    verdict = Policy("auto", make_cloud(URL, prices=None)).after(CASE, SOME, 0.1, unsure=True)
    assert verdict.decision == "cloud"
    assert verdict.reason.endswith("is expected to gain 0.80 at an unknown price")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"offline": True}, "network is switched off"),
        ({"allow": ("text",)}, "no consent to send image"),
        ({"budget_day": 0.0, "prices": Prices(0.01, 0.01)}, "budget of the day"),
        ({"api_key_env": "NOT_SET"}, "no key"),
    ],
)
def test_where_the_cloud_can_not_be_asked_the_answer_is_unsure(
    make_cloud: MakeCloud, given: dict[str, object], says: str
) -> None:
    cloud = make_cloud(URL, **{"prices": Prices(0.001, 0.001), **given})
    verdict = Policy("auto", cloud).after(CASE, SOME, 0.3, unsure=False)
    assert (verdict.decision, verdict.unsure) == ("local", True)
    assert verdict.reason.startswith("confidence 0.30; the cloud was not asked: ")
    assert says in verdict.reason


def test_without_a_cloud_only_what_is_below_its_threshold_is_unsure() -> None:
    policy = Policy("auto", None)
    assert policy.after(CASE, SOME, 0.9, unsure=False) == Verdict("local", "confidence 0.90")
    verdict = policy.after(CASE, SOME, 0.3, unsure=True)
    assert verdict.unsure
    assert verdict.reason.endswith("the cloud was not asked: No cloud model is set up.")


def test_an_answer_of_unknown_confidence_stays_here(cloud: Cloud) -> None:
    verdict = Policy("auto", cloud).after(CASE, SOME, None, unsure=False)
    assert verdict.decision == "local"
    assert verdict.reason.endswith("how sure it is, isn't known")


def test_a_provider_that_rests_is_not_asked(make_cloud: MakeCloud) -> None:
    with ProviderServer(status(500)) as server:
        cloud = make_cloud(server.url, prices=Prices(0.001, 0.001), attempts=FAILURES)
        with pytest.raises(CloudUnavailable):
            cloud.ask(CASE.messages)
        verdict = Policy("auto", cloud).after(CASE, SOME, 0.3, unsure=True)
    assert "is left alone for" in verdict.reason


def test_a_cloud_that_failed_leaves_the_answer_from_here(cloud: Cloud) -> None:
    policy = Policy("auto", cloud)
    asked = policy.after(CASE, SOME, 0.3, unsure=False)
    verdict = policy.fell_back(asked, CloudUnavailable("m took longer than 60 s."))
    assert (verdict.decision, verdict.unsure) == ("local", True)
    assert "confidence 0.30" in verdict.reason
    assert verdict.reason.endswith("m took longer than 60 s.")


def test_the_gate_sends_what_is_beyond_the_model(cloud: Cloud) -> None:
    policy = Policy("auto", cloud, gate=Gate(frozenset({"read"})))
    assert policy.before(CASE).decision == "local"
    verdict = policy.before(READ)
    assert verdict.decision == "cloud"
    assert verdict.reason.startswith("questions of this type (read) are beyond this model: m at")


def test_the_gate_says_why_it_could_not_send(make_cloud: MakeCloud) -> None:
    gate = Gate(frozenset({"read"}))
    policy = Policy("auto", make_cloud(URL, allow=("text",), prices=Prices(0, 0)), gate=gate)
    verdict = policy.before(READ)
    assert (verdict.decision, verdict.unsure) == ("local", True)
    assert "beyond this model; the cloud was not asked: There is no consent" in verdict.reason
    assert policy.after(READ, verdict, 0.99, unsure=False) == verdict


@pytest.mark.parametrize(
    ("looked", "says"),
    [
        (Looked(width=12, height=300), "12 x 300 pixels, too few"),
        (Looked(sharpness=2.0), "too blurred for this question"),
    ],
)
def test_what_nobody_can_see_is_not_sent(cloud: Cloud, looked: Looked, says: str) -> None:
    verdict = Policy("auto", cloud).before(replace(READ, pictures=(looked,)))
    assert (verdict.decision, verdict.unsure) == ("local", True)
    assert says in verdict.reason


def test_a_blurred_picture_may_still_be_named() -> None:
    assert Gate().look("name", (Looked(sharpness=2.0),)) is None


def test_letters_that_the_encoder_would_lose(cloud: Cloud) -> None:
    scan = Looked(width=2000, height=1500)
    assert Gate(sees=260).look("name", (scan,)) is None
    assert Gate().look("read", (scan,)) is None
    finding = Gate(sees=260).look("read", (scan,))
    assert finding is not None
    assert finding.elsewhere
    assert "sees the picture at 260 of 2000 pixels" in finding.reason


def test_a_hopeless_answer_is_stopped_at_its_length_and_no_other(cloud: Cloud) -> None:
    policy = Policy("auto", cloud, stops={2: -1.0, 4: -0.5})
    assert not policy.hopeless(CASE, tokens(-9.0))
    assert policy.hopeless(CASE, tokens(-1.0, -1.1))
    assert not policy.hopeless(CASE, tokens(-1.0, -1.0))
    assert not policy.hopeless(CASE, tokens(-9.0, -9.0, -9.0))
    assert policy.hopeless(CASE, tokens(-0.6, -0.6, -0.6, -0.6))
    assert policy.stopped(4).decision == "cloud"
    assert "stopped after 4 tokens" in policy.stopped(4).reason


def test_no_answer_is_stopped_for_a_cloud_that_can_not_be_asked(
    cloud: Cloud, make_cloud: MakeCloud
) -> None:
    poor = tokens(-9, -9)
    assert not Policy("auto", cloud).hopeless(CASE, poor)
    assert not Policy("auto", None, stops={2: -1.0}).hopeless(CASE, poor)
    assert not Policy("auto", make_cloud(URL, allow=()), stops={2: -1.0}).hopeless(CASE, poor)


def test_every_verdict_has_a_reason(cloud: Cloud, home: Path) -> None:
    for route in ("local", "auto"):
        policy = Policy(route, cloud)
        before = policy.before(CASE)
        assert before.reason
        assert policy.after(CASE, before, 0.5, unsure=False).reason


def test_an_error_is_raised_again_only_on_route_cloud(cloud: Cloud) -> None:
    error: CloudError = CloudUnavailable("gone")
    assert Policy("auto", cloud).fell_back(SOME, error).unsure

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from cloud_parts import MakeCloud
from provider_server import ProviderServer, answers, status

from edgevlm.errors import CloudRefused, CloudUnavailable
from edgevlm.messages import Message
from edgevlm.routing.breaker import FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker
from edgevlm.routing.request import AnswerOptions
from edgevlm.routing.retry import backoff, retry_after

QUESTION = [Message("user", "What is this?")]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_backoff_grows_and_is_spread() -> None:
    assert [backoff(n, lambda: 1.0) for n in (1, 2, 3, 4, 5, 6, 50)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert [backoff(n, lambda: 0.0) for n in (1, 2, 5)] == [0.125, 0.25, 2]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3), ("0.5", 0.5), ("-1", 0), ("soon", None), ("", None), ("inf", None), ("nan", None)],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}) == seconds


@pytest.mark.parametrize("year", [1990, 2026, 2090])
def test_retry_after_is_read_against_the_servers_own_clock(year: int) -> None:
    """So that a wrong clock here, or there, changes nothing."""
    now = datetime(year, 3, 1, tzinfo=timezone.utc)
    until = now + timedelta(seconds=7)
    headers = {"retry-after": format_datetime(until, True), "date": format_datetime(now, True)}
    assert retry_after(headers) == 7


def test_retry_after_a_moment_without_a_date() -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=60)
    seconds = retry_after({"retry-after": format_datetime(soon, True)})
    assert seconds is not None
    assert 0 < seconds <= 60


def test_a_provider_is_waited_for_as_it_asks(make_cloud: MakeCloud, pauses: list[float]) -> None:
    busy = status(429, "slow down", Retry_After="7")
    with ProviderServer(busy, status(503), answers("A circle.")) as server:
        answer = make_cloud(server.url).ask(QUESTION)
    assert (answer.text, answer.receipt.tries) == ("A circle.", 3)
    assert pauses[0] == 7
    assert 0.25 <= pauses[1] <= 1


def test_no_pause_that_outlives_the_deadline(make_cloud: MakeCloud, pauses: list[float]) -> None:
    with ProviderServer(status(429, "slow down", Retry_After="30")) as server:
        with pytest.raises(CloudUnavailable) as caught:
            make_cloud(server.url, timeout_s=20.0).ask(QUESTION)
        assert len(server.requests) == 1
    assert pauses == []
    assert caught.value.hint == "Ask again later. It asks to wait 30 s."


def test_tries_end(make_cloud: MakeCloud) -> None:
    with ProviderServer(status(500, "oops")) as server:
        stream = make_cloud(server.url, attempts=3).stream(QUESTION)
        with pytest.raises(CloudUnavailable, match="HTTP 500: oops"):
            next(stream)
        assert len(server.requests) == stream.receipt.tries == 3
    assert stream.receipt.sent.text_bytes == 3 * len("What is this?")


def test_what_a_provider_does_not_take_is_learnt_once(make_cloud: MakeCloud) -> None:
    no_limit = status(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.")
    no_options = status(400, "stream_options: extra fields not permitted")
    no_heat = status(400, "Unsupported value: 'temperature'")
    with ProviderServer(no_limit, no_options, no_heat, answers("A circle.")) as server:
        cloud = make_cloud(server.url)
        for _ in range(2):
            cloud.ask(QUESTION, AnswerOptions(max_tokens=9, temperature=0.0))
        assert len(server.requests) == 5
        bodies = [body for _, _, body in server.requests]
    assert b'"max_completion_tokens":9' in bodies[-1]
    assert b"stream_options" not in bodies[-1] + bodies[-2]
    assert b"temperature" not in bodies[-1] + bodies[-2]


def test_a_budget_ends_the_tries(make_cloud: MakeCloud) -> None:
    """The second would cost more than is left, and what is told is what went wrong."""
    with ProviderServer(status(500, "oops")) as server:
        cloud = make_cloud(server.url, budget_day=0.03)
        with pytest.raises(CloudUnavailable, match="oops"):
            cloud.ask(QUESTION, AnswerOptions(max_tokens=512))
        assert len(server.requests) == 1


def test_a_breaker_opens_rests_and_tries_one() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.enter() == 0
        breaker.failed()
    assert breaker.wait_s() == FIRST_PAUSE_S
    clock.now += FIRST_PAUSE_S
    assert breaker.enter() == 0
    assert breaker.enter() > 0  # one only
    breaker.failed()
    assert breaker.wait_s() == 2 * FIRST_PAUSE_S
    clock.now += 2 * FIRST_PAUSE_S
    breaker.enter()
    breaker.succeeded()
    assert (breaker.wait_s(), breaker.enter(), breaker.enter()) == (0, 0, 0)


def test_a_breaker_rests_no_longer_than_that() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(50):
        clock.now += breaker.wait_s()
        breaker.enter()
        breaker.failed()
    assert breaker.wait_s() == LONGEST_PAUSE_S


def test_single_failures_do_not_open_it() -> None:
    breaker = Breaker(Clock())
    for _ in range(20):
        breaker.failed()
        breaker.succeeded()
    assert breaker.wait_s() == 0


def test_a_storm_is_left_alone(make_cloud: MakeCloud) -> None:
    clock = Clock()
    with ProviderServer(*[status(500, "oops")] * 6, answers("A circle.")) as server:
        cloud = make_cloud(server.url, attempts=3, breaker=Breaker(clock))
        for _ in range(2):
            with pytest.raises(CloudUnavailable):
                cloud.ask(QUESTION)
        assert len(server.requests) == FAILURES
        with pytest.raises(CloudUnavailable, match="again and again, and is left alone for 30 s"):
            cloud.check(QUESTION)
        clock.now += FIRST_PAUSE_S
        with pytest.raises(CloudUnavailable):
            cloud.ask(QUESTION)
        clock.now += 2 * FIRST_PAUSE_S
        assert cloud.ask(QUESTION).text == "A circle."


def test_a_storm_in_one_call_is_told_as_it_was(make_cloud: MakeCloud) -> None:
    with ProviderServer(status(500, "oops")) as server:
        with pytest.raises(CloudUnavailable, match="oops"):
            make_cloud(server.url, attempts=2 * FAILURES).ask(QUESTION)
        assert len(server.requests) == FAILURES


@pytest.mark.parametrize(
    ("said", "refused"),
    [("insufficient_quota", True), ("Check your plan and billing details.", True),
     ("You exceeded your quota a minute.", False)],
)  # fmt: skip
def test_an_empty_account_is_not_asked_again(
    make_cloud: MakeCloud, said: str, refused: bool
) -> None:
    with ProviderServer(status(429, said)) as server:
        with pytest.raises(CloudRefused if refused else CloudUnavailable):
            make_cloud(server.url, attempts=2).ask(QUESTION)
        assert len(server.requests) == (1 if refused else 2)


def test_a_rejected_key_does_not_open_it(make_cloud: MakeCloud) -> None:
    with ProviderServer(status(401)) as server:
        cloud = make_cloud(server.url)
        for _ in range(2 * FAILURES):
            with pytest.raises(CloudRefused):
                cloud.ask(QUESTION)
        assert len(server.requests) == 2 * FAILURES

"""The ledger counts no less than was spent: across processes, kills and wrong clocks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cloud_parts import CANARY, PRICES
from provider_server import Behaviour, Handler, ProviderServer, delta, usage

from edgevlm.errors import CloudNotAllowed
from edgevlm.routing import consent
from edgevlm.routing.ledger import FILE, Ledger
from edgevlm.routing.prices import NANO, Prices, Tokens, dollars, nano
from edgevlm.routing.provider import KEY_VARIABLE, Provider, write_provider

URL = "https://api.example.com/v1"
NOON = datetime(2026, 12, 1, 12, tzinfo=timezone.utc)


class Clock:
    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(home: Path, clock: Clock) -> Ledger:
    return Ledger(home, clock)


def provider(**given: object) -> Provider:
    return Provider(URL, "m", **{"prices": PRICES, **given})  # type: ignore[arg-type]


def test_a_price_is_rounded_up_and_never_to_nothing() -> None:
    assert Prices(0.0375, 0).cost(Tokens(1, 0)) == 38
    assert Prices(0.15, 0.6).cost(Tokens(1000, 500)) == 450_000
    assert Prices(0.1, 0.2).cost(Tokens(3, 3)) == 900
    assert Prices(1e-9, 0).cost(Tokens(1, 0)) == 1
    assert Prices(0, 0).cost(Tokens(10, 10)) == 0


def test_a_million_small_calls_lose_nothing() -> None:
    assert sum([nano(0.1)] * 10) == NANO
    assert dollars(nano(0.1) * 3) == 0.3


def test_a_reservation_counts_until_it_is_settled(ledger: Ledger) -> None:
    first = ledger.reserve(provider(), nano(0.5))
    assert (ledger.spending().day, ledger.spending().reserved) == (0.5, 0.5)
    ledger.settle(first, nano(0.2))
    assert (ledger.spending().day, ledger.spending().reserved) == (0.2, 0)
    ledger.settle(first, nano(0.2))  # a second time counts nothing
    second = ledger.reserve(provider(), nano(0.5))
    ledger.release(second)
    assert (ledger.spending().month, ledger.spending().calls) == (0.2, 1)
    assert ledger.mean_cost(provider()) == 0.2


def test_a_call_may_cost_more_than_was_reserved(ledger: Ledger) -> None:
    ledger.settle(ledger.reserve(provider(), nano(0.1)), nano(0.3))
    assert ledger.spending().day == 0.3


def test_a_budget_is_kept_before_the_call(ledger: Ledger) -> None:
    day = provider(budget_day=1.0)
    ledger.settle(ledger.reserve(day, nano(0.7)), nano(0.7))
    ledger.check(day, nano(0.3))
    with pytest.raises(
        CloudNotAllowed, match=r"budget of the day is \$1.00: \$0.7 of it"
    ) as caught:
        ledger.reserve(day, nano(0.31))
    assert caught.value.hint is not None
    assert caught.value.exit_code == 5
    with pytest.raises(CloudNotAllowed, match="budget of the month"):
        ledger.check(provider(budget_month=0.5), 1)
    ledger.reserve(day, nano(0.3))


def test_a_budget_counts_all_providers(ledger: Ledger) -> None:
    ledger.settle(ledger.reserve(provider(), nano(0.7)), nano(0.7))
    other = Provider("https://other.example.com", "n", prices=PRICES, budget_day=0.7)
    with pytest.raises(CloudNotAllowed):
        ledger.reserve(other, 1)


def test_without_a_price_no_budget_is_kept(ledger: Ledger, home: Path) -> None:
    unpriced = Provider(URL, "m")
    ledger.settle(ledger.reserve(unpriced, None), None)
    assert (ledger.spending().unpriced, ledger.spending().day) == (1, 0)
    assert ledger.mean_cost(unpriced) is None
    with pytest.raises(CloudNotAllowed, match="unknown"):
        ledger.reserve(provider(budget_day=1.0), None)


def test_a_new_day_and_a_new_month_begin_at_nothing(ledger: Ledger, clock: Clock) -> None:
    ledger.settle(ledger.reserve(provider(), nano(0.7)), nano(0.7))
    clock.now = NOON + timedelta(days=1)
    assert (ledger.spending().day, ledger.spending().month) == (0, 0.7)
    clock.now = NOON + timedelta(days=31)
    assert (ledger.spending().day, ledger.spending().month) == (0, 0)


def test_the_day_is_utc_whatever_the_zone(ledger: Ledger, clock: Clock) -> None:
    ledger.reserve(provider(), nano(0.7))
    clock.now = NOON.astimezone(timezone(timedelta(hours=14)))
    assert ledger.spending().day == 0.7


@pytest.mark.parametrize("jump", [timedelta(hours=-13), timedelta(days=-40), timedelta(days=-9000)])
def test_a_clock_that_is_set_back_opens_no_budget(
    ledger: Ledger, clock: Clock, jump: timedelta
) -> None:
    ledger.settle(ledger.reserve(provider(), nano(0.7)), nano(0.7))
    clock.now = NOON + jump
    spending = ledger.spending()
    assert (spending.day, spending.month, spending.later) == (0.7, 0.7, 0.7)
    with pytest.raises(CloudNotAllowed):
        ledger.reserve(provider(budget_day=1.0), nano(0.31))


def test_what_was_booked_in_the_future_counts_today(ledger: Ledger, clock: Clock) -> None:
    ledger.settle(ledger.reserve(provider(), nano(0.4)), nano(0.4))
    clock.now = NOON + timedelta(days=400)
    assert ledger.spending().day == 0
    ledger.settle(ledger.reserve(provider(), nano(0.4)), nano(0.4))
    clock.now = NOON
    assert ledger.spending().day == 0.8


def test_a_jump_in_the_middle_of_a_call_books_on_the_day_of_its_start(
    ledger: Ledger, clock: Clock
) -> None:
    reservation = ledger.reserve(provider(), nano(0.5))
    clock.now = NOON + timedelta(days=3)
    ledger.settle(reservation, nano(0.4))
    assert ledger.spending().day == 0
    clock.now = NOON
    assert ledger.spending().day == 0.4


def test_a_broken_ledger_sends_nothing(ledger: Ledger, home: Path) -> None:
    (home / FILE).parent.mkdir(parents=True)
    (home / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(CloudNotAllowed, match="can't be kept"):
        ledger.reserve(provider(), 1)


_RESERVE = """
import sys
from pathlib import Path
from edgevlm.errors import CloudNotAllowed
from edgevlm.routing.ledger import Ledger
from edgevlm.routing.prices import Prices, nano
from edgevlm.routing.provider import Provider
provider = Provider(sys.argv[2], "m", prices=Prices(1, 1), budget_day=1.0)
ledger, done = Ledger(Path(sys.argv[1])), 0
for _ in range(40):
    try:
        reservation = ledger.reserve(provider, nano(0.02))
    except CloudNotAllowed:
        continue
    done += 1
    ledger.settle(reservation, nano(0.01))
print(done)
"""


def test_processes_share_one_budget(home: Path) -> None:
    command = [sys.executable, "-c", _RESERVE, str(home), URL]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    done = [int(process.communicate(timeout=60)[0]) for process in running]
    spent = Ledger(home).spending()
    assert spent.day == pytest.approx(0.01 * sum(done))
    assert 0.95 <= spent.day <= 1.0
    assert spent.reserved == 0


def test_threads_share_one_budget(ledger: Ledger) -> None:
    limited, done = provider(budget_day=1.0), []

    def work() -> None:
        for _ in range(10):
            try:
                ledger.settle(ledger.reserve(limited, nano(0.03)), nano(0.03))
            except CloudNotAllowed:
                return
            done.append(0.03)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 33
    assert ledger.spending().day == pytest.approx(0.99)


_ASK = """
import os, sys
from edgevlm.messages import Message
from edgevlm.routing.cloud import Cloud
from edgevlm.routing.request import AnswerOptions
from edgevlm.settings import load_settings
cloud = Cloud.from_settings(load_settings())
cloud.ask([Message("user", str(os.getpid()))], AnswerOptions(max_tokens=50))
print("answered")
"""


def kills_when_asked(handler: Handler) -> None:
    handler.bill(50)


def kills_in_the_answer(handler: Handler) -> None:
    handler.bill(50)
    handler.head(200, "text/event-stream")
    handler.event(delta("A red "))


def kills_before_the_usage(handler: Handler) -> None:
    kills_in_the_answer(handler)
    handler.event(delta("circle.", "stop"))


def kills_before_the_end(handler: Handler) -> None:
    kills_before_the_usage(handler)
    handler.event(usage(completion=50))


@pytest.mark.parametrize(
    "stage", [kills_when_asked, kills_in_the_answer, kills_before_the_usage, kills_before_the_end]
)
def test_a_process_that_is_killed_in_a_call_has_paid(
    stage: Behaviour, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behave(handler: Handler) -> None:
        stage(handler)
        os.kill(int(handler.request_json["messages"][0]["content"]), signal.SIGKILL)
        handler.server.closing.wait()

    monkeypatch.setenv(KEY_VARIABLE, CANARY)
    with ProviderServer(behave) as server:
        asked = Provider(server.url, "m", prices=PRICES)
        write_provider(home, asked)
        consent.allow(home, asked, ["text"])
        done = subprocess.run(
            [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=60, check=False
        )
        billed = Tokens(server.billed.prompt, server.billed.completion)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    spending = Ledger(home).spending()
    assert spending.day >= dollars(PRICES.cost(billed)) > 0
    assert spending.reserved == spending.day


def test_a_ledger_that_many_begin_at_once(tmp_path: Path) -> None:
    """SQLite alone answers some of them that the new database is locked."""
    failures: list[Exception] = []

    def work(home: Path, together: threading.Barrier) -> None:
        ledger = Ledger(home)
        together.wait()
        try:
            ledger.settle(ledger.reserve(provider(), 100), 100)
        except Exception as error:
            failures.append(error)
        ledger.close()

    for number in range(10):
        home, together = tmp_path / str(number), threading.Barrier(8)
        threads = [threading.Thread(target=work, args=(home, together)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Ledger(home).spending().calls == 8
    assert failures == []

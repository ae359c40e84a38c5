from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cloud_parts import REPLY

from edgevlm.messages import Route, Sent
from edgevlm.routing import log as log_module
from edgevlm.routing.call import Receipt
from edgevlm.routing.log import FILE, RouteLog, Totals

SENT = Sent(text_bytes=20, image_bytes=1000)
CLOUD = replace(REPLY, route=Route("cloud", "confidence 0.30", SENT, 0.002), confidence=None)
RECEIPT = Receipt("https://api.example.com/v1", "m", SENT, ("ab" * 32,), 0.002, tries=2)


class Clock:
    now = datetime(2026, 12, 1, 12, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def log(home: Path) -> RouteLog:
    return RouteLog(home, now=Clock())


def test_an_answer_is_noted_with_its_receipt(log: RouteLog) -> None:
    log.add(REPLY)
    log.add(CLOUD, receipt=RECEIPT)
    newest, first = log.last(10)
    assert (first["at"], first["decision"], first["confidence"]) == (
        "2026-12-01T12:00:00Z",
        "local",
        0.31,
    )
    assert "cloud" not in first
    assert newest["sent"] == {"text_bytes": 20, "image_bytes": 1000, "embedding_bytes": 0}
    assert newest["cloud"]["provider"] == "https://api.example.com/v1"
    assert newest["cloud"]["pictures"] == ["ab" * 32]
    assert (newest["cost_usd"], newest["cloud"]["tries"]) == (0.002, 2)
    assert log.last(1) == [newest]


def test_no_words_are_kept_unless_asked(log: RouteLog, home: Path) -> None:
    log.add(REPLY, question="Who is Bob?")
    log.close()
    assert all(b"Bob" not in p.read_bytes() and b"Ann" not in p.read_bytes()
               for p in (home / FILE).parent.iterdir())  # fmt: skip
    asked = RouteLog(home, prompts=True)
    asked.add(REPLY, question="Who is Bob?")
    (newest,) = asked.last(1)
    assert (newest["question"], newest["answer"]) == ("Who is Bob?", "A circle for Ann.")


def test_sums_and_what_was_saved(log: RouteLog) -> None:
    assert log.totals() == Totals(*[log_module.Share()] * 3)
    for _ in range(6):
        log.add(REPLY)
    log.add(replace(REPLY, route=Route("cache", "asked before")))
    assert (log.totals().saved_usd, log.totals().saved_bytes) == (None, None)
    log.add(CLOUD, receipt=RECEIPT)
    log.add(CLOUD, receipt=RECEIPT)
    totals = log.totals()
    assert (totals.answers, totals.local.answers, totals.cache.answers) == (9, 6, 1)
    assert (totals.cloud.answers, totals.cloud.bytes) == (2, 2040)
    assert totals.saved_usd == pytest.approx(7 * 0.002)
    assert totals.saved_bytes == 7 * 1020
    assert log.totals(since="2026-12-02").answers == 0


def test_it_is_bounded_and_its_sums_are_not(log: RouteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_MOST", 10)
    for _ in range(25):
        log.add(REPLY)
    assert len(log.last(1000)) == 10
    assert log.totals().answers == 25
    log.clear()
    assert (log.last(10), log.totals().answers) == ([], 0)


def test_a_log_that_can_not_be_written_costs_no_answer(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / FILE).parent.mkdir(parents=True)
    (home / FILE).write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.WARNING):
        RouteLog(home).add(REPLY)
    assert "can't be written" in caplog.text


def test_threads_write_one(log: RouteLog) -> None:
    def work() -> None:
        for _ in range(20):
            log.add(REPLY)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.totals().answers == len(log.last(1000)) == 100

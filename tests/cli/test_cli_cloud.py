"""`edgevlm cloud` and `edgevlm route log` as a person meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from cloud_parts import CANARY, REPLY

from edgevlm.cli.route_log import log
from edgevlm.messages import Route, Sent
from edgevlm.routing.call import Receipt
from edgevlm.routing.ledger import Ledger
from edgevlm.routing.log import RouteLog
from edgevlm.routing.provider import read_provider

Call = Callable[..., tuple[int, str, str]]
URL = "https://api.example.com/v1"
NAMED = ("set", "--base-url", URL, "--model", "m")


@pytest.fixture
def cloud(edgevlm: Call) -> Call:
    return partial(edgevlm, "cloud")


def document(cloud: Call) -> dict[str, object]:
    value = json.loads(cloud("status", "--json")[1])
    assert isinstance(value, dict)
    return value


def test_at_first_there_is_none(cloud: Call) -> None:
    code, out, err = cloud("status")
    assert (code, out) == (0, "No cloud model is set up: nothing leaves this device.\n")
    assert cloud("status", "--json") == (0, "null\n", "")
    code, out, err = cloud("allow", "text")
    assert (code, out) == (2, "")
    assert err.startswith("error: No cloud model is set up.\nhint: `edgevlm cloud set")


def test_set_says_what_is_set_and_that_nothing_may_be_sent(cloud: Call) -> None:
    code, out, _ = cloud(*NAMED, "--price-in", "0.15", "--price-out", ".6", "--budget-day", "1")
    assert code == 0
    assert out.splitlines() == [
        f"m at {URL}",
        "  key      none: set the variable EDGEVLM_CLOUD_API_KEY",
        "  may send nothing: `edgevlm cloud allow text image` allows it",
        "  price    $0.15 in and $0.6 out for a million tokens",
        "  budget   $1 a day",
        "  spent    $0.00 today, $0.00 this month (UTC)",
        "  limits   60 s, 4 tries, pictures of 1024 pixels and at most 25600 tokens",
    ]


def test_what_is_not_given_stays(cloud: Call, home: Path) -> None:
    cloud(*NAMED, "--price-in", "1", "--price-out", "2", "--timeout", "9", "--accuracy", "0.8")
    cloud("set", "--budget-month", "5", "--picture-side", "512", "--price-out", "3")
    provider = read_provider(home)
    assert provider is not None
    assert (provider.base_url, provider.budget_month, provider.budget_day) == (URL, 5.0, None)
    assert (provider.limits.timeout_s, provider.limits.picture_side) == (9.0, 512)
    assert (provider.prices, provider.weights.accuracy) != (None, 0.9)
    assert document(cloud)["prices"] == {"prompt": 1.0, "completion": 3.0}
    cloud("set", "--budget-month", "none")
    assert document(cloud)["budget_month"] is None


def test_another_model_has_another_price_and_needs_consent_again(cloud: Call) -> None:
    cloud(*NAMED, "--price-in", "1", "--price-out", "2", "--budget-day", "1")
    cloud("allow", "text", "image")
    code, _, err = cloud("set", "--model", "n")
    assert code == 2
    assert "A budget can't be kept while nobody says what the model costs." in err
    assert document(cloud)["model"] == "m"
    assert cloud("set", "--model", "n", "--price-in", "3", "--price-out", "4")[0] == 0
    assert (document(cloud)["allowed"], document(cloud)["model"]) == ([], "n")


def test_allow_and_deny(cloud: Call) -> None:
    cloud(*NAMED)
    sent = "may be sent to m at api.example.com.\n"
    assert cloud("allow", "text") == (0, f"Text {sent}", "")
    assert cloud("allow", "image") == (0, f"Text and image {sent}", "")
    assert json.loads(cloud("deny", "text", "--json")[1])["allowed"] == ["image"]
    cloud("allow", "embedding")
    assert cloud("deny") == (0, f"Nothing {sent}", "")
    assert cloud("allow", "sound")[0] == 2
    assert cloud("allow")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("set",), "needs --base-url and --model"),
        (("set", "--base-url", URL), "needs --base-url and --model"),
        ((*NAMED, "--price-in", "1"), "both --price-in and --price-out"),
        ((*NAMED, "--price-in", "x", "--price-out", "1"), "give US dollars"),
        ((*NAMED, "--budget-day", "1"), "A budget can't be kept"),
        ((*NAMED, "--timeout", "0"), "timeout_s can't be 0.0"),
        (("set", "--base-url", "http://api.example.com", "--model", "m"), "is not https"),
        (("set", "--base-url", f"https://u:{CANARY}@a.example.com", "--model", "m"), "password"),
        ((*NAMED, "--api-key-env", CANARY), "capital letters"),
    ],
)
def test_what_can_not_be_set(
    cloud: Call, home: Path, arguments: tuple[str, ...], says: str
) -> None:
    code, out, err = cloud(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert CANARY not in err
    assert read_provider(home) is None


def test_the_key_is_told_of_and_not_told(
    cloud: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", CANARY)
    out = cloud(*NAMED, "--api-key-env", "MY_KEY")[1]
    assert "  key      in the variable MY_KEY\n" in out
    assert document(cloud)["key"] == "variable MY_KEY"
    monkeypatch.setenv("EDGEVLM_OFFLINE", "1")
    said = out + cloud("status")[1] + cloud("status", "--json")[1]
    assert "EDGEVLM_OFFLINE is set: nothing is sent." in said
    assert CANARY not in said
    assert all(p.is_dir() or CANARY.encode() not in p.read_bytes() for p in home.rglob("*"))


def test_a_server_on_this_device_needs_none(cloud: Call) -> None:
    out = cloud("set", "--base-url", "http://127.0.0.1:8000/v1", "--model", "m")[1]
    assert "none, and none needed on this device" in out


def test_what_is_spent_is_shown(cloud: Call, home: Path) -> None:
    cloud(*NAMED, "--price-in", "1", "--price-out", "2")
    provider = read_provider(home)
    assert provider is not None
    ledger = Ledger(home)
    ledger.settle(ledger.reserve(provider, 9_000_000), 7_000_000)
    ledger.reserve(provider, 1_000_000)
    ledger.settle(ledger.reserve(provider, None), None)
    assert (
        "$0.008 today, $0.008 this month (UTC); $0.001 of it for calls without an end;"
        " 1 calls at an unknown price\n"
    ) in cloud("status")[1]


def test_a_broken_file_is_told_in_two_lines(cloud: Call, home: Path) -> None:
    home.mkdir()
    (home / "cloud.json").write_text("{")
    code, out, err = cloud("status")
    assert (code, out, len(err.splitlines())) == (5, "", 2)
    assert err.startswith(f"error: {home / 'cloud.json'} can't be read")


SENT = Sent(text_bytes=20, image_bytes=51_000)


def run_log(*arguments: str) -> str:
    result = CliRunner().invoke(log, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_log_says_who_answered_and_what_was_sent(home: Path) -> None:
    assert run_log() == "No answers yet.\n"
    answers = RouteLog(home)
    answers.add(REPLY)
    receipt = Receipt(URL, "m", SENT, ("ab" * 32,), 0.002, tries=1)
    route = Route("cloud", "route cloud: m at api.example.com answers", SENT, 0.002)
    answers.add(replace(REPLY, route=route, unsure=False), receipt=receipt)
    lines = run_log().splitlines()
    assert lines[0].split()[:4] == ["when", "(UTC)", "from", "confidence"]
    assert "cloud" in lines[1]
    assert f"51 kB  $0.002  m at {URL}" in " ".join(lines[1].split("   ")).replace("   ", "  ")
    assert "local (unsure)" in lines[2]
    assert lines[2].rstrip().endswith("the cloud was not asked: no consent")
    assert lines[-1] == (
        "2 answers: 1 local (50%), 0 cache (0%), 1 cloud (50%); sent 51 kB for $0.002;"
        " saved about $0.002 and 51 kB"
    )
    assert len(run_log("--last", "1").splitlines()) == 3


def test_the_log_as_json_and_cleared(home: Path) -> None:
    RouteLog(home).add(REPLY)
    value = json.loads(run_log("--json"))
    assert value["answers"][0]["reason"].startswith("confidence 0.31")
    assert value["totals"]["answers"] == 1
    assert value["totals"]["saved_usd"] is None
    assert run_log("--clear") == "No answers yet.\n"

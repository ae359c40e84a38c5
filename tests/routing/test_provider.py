"""What may be set, what may be sent, and where the key comes from."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloud_parts import CANARY, PRICES, MakeCloud
from keyring import get_keyring, set_keyring
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked
from provider_server import ProviderServer, answers

from edgevlm.errors import CloudNotAllowed, UsageError
from edgevlm.messages import Message, Sent
from edgevlm.routing import consent
from edgevlm.routing.cloud import Cloud
from edgevlm.routing.keys import SERVICE, Key, Veil, find_key, key_source
from edgevlm.routing.provider import (
    FILE,
    KEY_VARIABLE,
    Limits,
    Provider,
    Weights,
    read_provider,
    write_provider,
)
from edgevlm.settings import Settings

URL = "https://api.example.com/v1"
TEXT = [Message("user", "What is this?")]
PICTURE = [Message("user", "What is this?", (np.zeros((40, 40, 3), np.uint8),))]


@pytest.mark.parametrize(
    ("url", "spelled"),
    [
        ("https://api.example.com/v1/", URL),
        ("HTTPS://API.Example.COM:443/v1", URL),
        ("https://api.example.com", "https://api.example.com"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://localhost/v1", "http://localhost/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("https://host_1.local:8443/a/b-c", "https://host_1.local:8443/a/b-c"),
    ],
)
def test_a_base_url_has_one_spelling(url: str, spelled: str) -> None:
    assert Provider(url, "m").base_url == spelled


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://api.example.com/v1", "is not https"),
        ("http://192.168.0.7/v1", "is not https"),
        ("http://127.0.0.1.example.com/v1", "is not https"),
        ("http://localhost.example.com/v1", "is not https"),
        ("ftp://api.example.com", "is not https"),
        (f"https://user:{CANARY}@api.example.com/v1", "user name or password"),
        (f"https://{CANARY}@api.example.com/v1", "user name or password"),
        (f"https://api.example.com/v1?key={CANARY}", "not the address of an API"),
        (f"https://api.example.com/v1#{CANARY}", "not the address of an API"),
        ("https:///v1", "not the address"),
        ("https://api example.com", "not the address"),
        ("https://api.example.com/v 1", "not the address"),
        ("https://api.example.com/\r\nX: 1", "not the address"),
        ("https://api.example.com:99999", "not a URL"),
        ("https://[::1", "not a URL"),
        ("api.example.com", "not the address"),
        ("", "not the address"),
    ],
)
def test_a_base_url_that_is_refused(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Provider(url, "m")
    assert CANARY not in caught.value.message + str(caught.value.hint)


@pytest.mark.parametrize(
    "given",
    [
        {"model": ""},
        {"model": "two words"},
        {"model": "m\n"},
        {"model": "x" * 201},
        {"model": "-m"},
        {"api_key_env": "lower"},
        {"api_key_env": CANARY},
        {"api_key_env": CANARY.replace("-", "_")},
        {"api_key_env": ""},
        {"prices": PRICES, "budget_day": -1},
        {"prices": PRICES, "budget_day": float("nan")},
        {"budget_month": 1.0},
        {"limits": Limits(timeout_s=0)},
        {"limits": Limits(attempts=0)},
        {"limits": Limits(picture_side=1.5)},  # type: ignore[arg-type]
        {"weights": Weights(accuracy=1.1)},
        {"weights": Weights(answer_usd=float("inf"))},
    ],
)
def test_what_can_not_be_set(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Provider(**{"base_url": URL, "model": "m", **given})
    assert "canary" not in caught.value.message + str(caught.value.hint)


def test_what_was_set_is_read_again(home: Path) -> None:
    assert read_provider(home) is None
    assert Cloud.from_settings(Settings(home)) is None
    provider = Provider(
        URL, "owner/model:free", "MY_KEY", PRICES, 1.5, 9.0, Limits(7.5, 2), Weights(accuracy=0.7)
    )
    write_provider(home, provider)
    assert read_provider(home) == provider
    cloud = Cloud.from_settings(Settings(home))
    assert cloud is not None
    assert cloud.provider == provider
    write_provider(home, None)
    assert read_provider(home) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"base_url": 1}', "{" * 10_000, '{"base_url": "http://a.b"}']
)
def test_a_broken_file_sends_nothing(home: Path, text: str) -> None:
    home.mkdir()
    (home / FILE).write_text(text)
    with pytest.raises(CloudNotAllowed, match="can't be read"):
        Cloud.from_settings(Settings(home))


def test_nothing_is_allowed_at_first(home: Path) -> None:
    assert consent.allowed(home, Provider(URL, "m")) == frozenset()


def test_consent_is_for_one_provider(home: Path) -> None:
    provider = Provider(URL, "m")
    assert consent.allow(home, provider, ["text"]) == {"text"}
    assert consent.allow(home, provider, ["image", "embedding"]) == {"text", "image", "embedding"}
    assert consent.deny(home, provider, ["image"]) == {"text", "embedding"}
    assert consent.allowed(home, provider) == {"text", "embedding"}
    for other in (Provider(URL, "n"), Provider("https://other.example.com/v1", "m")):
        assert consent.allowed(home, other) == frozenset()
        with pytest.raises(CloudNotAllowed):
            consent.require(home, other, ["text"])
    consent.allow(home, Provider(URL, "n"), ["image"])
    assert consent.allowed(home, provider) == frozenset()


def test_consent_survives_what_else_is_set(home: Path) -> None:
    consent.allow(home, Provider(URL, "m"), ["text"])
    assert consent.allowed(home, Provider(URL, "m", prices=PRICES, budget_day=3.0)) == {"text"}


def test_what_can_not_be_allowed(home: Path) -> None:
    with pytest.raises(UsageError, match="'sound'"):
        consent.allow(home, Provider(URL, "m"), ["sound"])


@pytest.mark.parametrize("text", ["null", '{"provider": 1', "[1]"])
def test_broken_consent_is_none(home: Path, text: str) -> None:
    home.mkdir()
    (home / consent.FILE).write_text(text)
    with pytest.raises(CloudNotAllowed, match="can't be read"):
        consent.allowed(home, Provider(URL, "m"))


def test_consents_at_once_are_all_kept(home: Path) -> None:
    provider = Provider(URL, "m")
    threads = [
        threading.Thread(target=consent.allow, args=(home, provider, [kind]))
        for kind in consent.KINDS * 5
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert consent.allowed(home, provider) == set(consent.KINDS)


@pytest.mark.parametrize(
    ("allow", "messages", "missing"),
    [((), TEXT, "text"), ((), PICTURE, "text or image"), (("text",), PICTURE, "image"),
     (("image",), TEXT, "text"), (("embedding",), PICTURE, "text or image")],
)  # fmt: skip
def test_nothing_is_sent_without_consent(
    make_cloud: MakeCloud, allow: tuple[str, ...], messages: list[Message], missing: str
) -> None:
    with ProviderServer(answers("A circle.")) as server:
        stream = make_cloud(server.url, allow=allow).stream(messages)
        with pytest.raises(CloudNotAllowed, match=f"no consent to send {missing} to m at") as error:
            next(stream)
        assert error.value.hint == f"`edgevlm cloud allow {missing.replace(' or', '')}` gives it."
        assert (server.requests, stream.receipt.sent) == ([], Sent())


def test_a_consent_that_is_withdrawn_ends_it_at_once(make_cloud: MakeCloud, home: Path) -> None:
    with ProviderServer(answers("A circle.")) as server:
        cloud = make_cloud(server.url)
        cloud.ask(TEXT)
        consent.deny(home, cloud.provider, ["text"])
        with pytest.raises(CloudNotAllowed):
            cloud.ask(TEXT)
        assert len(server.requests) == 1


def test_nothing_is_sent_offline(make_cloud: MakeCloud) -> None:
    with ProviderServer(answers("A circle.")) as server:
        cloud = make_cloud(server.url, offline=True)
        for ask in (cloud.ask, cloud.check):
            with pytest.raises(CloudNotAllowed, match="network is switched off"):
                ask(TEXT)
        assert server.requests == []


def test_nothing_is_sent_over_budget(make_cloud: MakeCloud) -> None:
    with ProviderServer(answers("A circle.")) as server:
        cloud = make_cloud(server.url, budget_day=0.0001)
        with pytest.raises(CloudNotAllowed, match="budget of the day"):
            cloud.ask(TEXT)
        assert server.requests == []


def test_a_video_is_not_sent(make_cloud: MakeCloud) -> None:
    with ProviderServer(answers("A film.")) as server:
        with pytest.raises(UsageError, match="video"):
            make_cloud(server.url).ask([Message("user", "What happens?", video=b"film")])
        assert server.requests == []


class InMemory(KeyringBackend):
    """A keyring of the kind that the `keyring` package finds on a desktop."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self._secrets: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self._secrets.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._secrets[service, username] = password


@pytest.fixture
def keyring() -> Iterator[InMemory]:
    before, backend = get_keyring(), InMemory()
    set_keyring(backend)
    yield backend
    set_keyring(before)


def test_a_key_from_the_environment(keyring: InMemory) -> None:
    keyring.set_password(SERVICE, URL, "from-the-keyring")
    provider = Provider(URL, "m", "MY_KEY")
    key = find_key(provider, {"MY_KEY": f" {CANARY}\n", KEY_VARIABLE: "of another"})
    assert key is not None
    assert key.reveal() == CANARY
    assert key_source(provider, {"MY_KEY": CANARY}) == "variable MY_KEY"


def test_a_key_from_the_keyring_is_that_of_the_url(keyring: InMemory) -> None:
    keyring.set_password(SERVICE, URL, CANARY)
    key = find_key(Provider(URL, "m"), {})
    assert key is not None
    assert key.reveal() == CANARY
    assert key_source(Provider(URL, "m"), {}) == "system's keyring"
    with pytest.raises(CloudNotAllowed, match="no key for m at other"):
        find_key(Provider("https://other.example.com/v1", "m"), {})


def test_a_keyring_that_fails_is_none(keyring: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(self: object, service: str, username: str) -> str:
        raise KeyringLocked("locked")

    monkeypatch.setattr(InMemory, "get_password", locked)
    with pytest.raises(CloudNotAllowed, match="no key") as caught:
        find_key(Provider(URL, "m"), {})
    assert caught.value.hint is not None
    assert f"keyring set edgevlm {URL}" in caught.value.hint


def test_a_keyring_in_a_plain_file_is_none(
    keyring: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring.set_password(SERVICE, URL, CANARY)
    monkeypatch.setattr(InMemory, "__module__", "keyrings.alt.file")
    assert key_source(Provider(URL, "m"), {}) is None


@pytest.mark.parametrize("value", ["two words", "k\u00e9y", "a\x00b", "x" * 5000, "line\nbreak"])
def test_a_key_that_is_none_is_not_shown(value: str) -> None:
    with pytest.raises(CloudNotAllowed, match="characters that no key has") as caught:
        find_key(Provider(URL, "m"), {KEY_VARIABLE: value})
    assert value not in caught.value.message + str(caught.value.hint)


def test_a_server_on_this_device_needs_no_key(make_cloud: MakeCloud, home: Path) -> None:
    with ProviderServer(answers("A circle.")) as server:
        provider = make_cloud(server.url).provider
        cloud = Cloud(home, provider, environ={})
        assert cloud.ask(TEXT).text == "A circle."
        assert "Authorization" not in server.requests[0][1]


def test_a_key_is_shown_by_nothing() -> None:
    key = Key(CANARY)
    assert CANARY not in f"{key} {key!r} {[key]} {vars(Key)}"
    for write in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not written down"):
            write(key)


@pytest.mark.parametrize("size", range(1, len(CANARY) + 3))
def test_a_key_that_comes_in_pieces_is_hidden(size: int) -> None:
    text = f"so {CANARY}{CANARY} and {CANARY[:9]} sk sk-canary-0 {CANARY}"
    veil = Veil(Key(CANARY))
    shown = "".join(veil.push(text[at : at + size]) for at in range(0, len(text), size))
    assert shown + veil.flush() == text.replace(CANARY, "[key]")
    assert CANARY not in shown


def test_a_text_without_the_key_is_not_held_back() -> None:
    veil = Veil(Key(CANARY))
    assert veil.push("A red circle.") == "A red circle."
    assert Veil(None).push("sk") == "sk"

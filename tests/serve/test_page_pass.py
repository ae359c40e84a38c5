"""The page's pass: a cookie opens the page's files, and nothing of the model's."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from raw_http import BEFORE_THE_PASS, HEALTH, ask, is_page, page_files, requests_of
from serving import TOKEN, Running, running

from edgevlm import Model


@pytest.fixture
def browser(server: Running) -> Iterator[httpx.Client]:
    """One that holds the pass and no token."""
    with httpx.Client(base_url=server.url) as browser:
        assert browser.get("/").status_code == 401
        given = browser.post("/page", headers={"Authorization": f"Bearer {TOKEN}"})
        assert given.status_code == 204
        cookie = given.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert TOKEN not in given.headers["set-cookie"]
        yield browser


def test_the_pass_opens_the_pages_files(browser: httpx.Client) -> None:
    for path in ("/", *page_files()):
        response = browser.get(path)
        assert response.status_code == 200, path
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_the_pass_opens_nothing_else(server: Running, browser: httpx.Client) -> None:
    for method, path in requests_of(server):
        if path in HEALTH or is_page(path):
            continue
        json = {} if method == "POST" else None
        assert browser.request(method, path, json=json).status_code == 401


def test_a_pass_that_is_wrong_opens_nothing(server: Running) -> None:
    for value in ("", "x", TOKEN, "x" * 43, "é"):
        cookie = f"Cookie: edgevlm_page={value}"
        for path in {"/", *page_files()} - BEFORE_THE_PASS:
            assert ask(server, "GET", path, token=None, more=[cookie]).status == 401


def test_the_pass_of_one_start_is_nothing_to_the_next(model: Model, browser: httpx.Client) -> None:
    with running(model) as other, httpx.Client(cookies=browser.cookies) as same:
        assert same.get(other.url + "/").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/page/../guard.py",
        "/page/..%2fguard.py",
        "/page/%2e%2e%2fguard.py",
        "/page/..%5cguard.py",
        "/page/%2fetc%2fpasswd",
        "/page/app.js%00.css",
        "/page/",
        "/page/nothing.js",
    ],
)
def test_no_other_file_is_read(server: Running, path: str) -> None:
    answer = ask(server, "GET", path)
    assert answer.status in (404, 307)
    assert b"import" not in answer.body
    assert b"root:" not in answer.body

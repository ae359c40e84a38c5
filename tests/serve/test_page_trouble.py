"""What the page says when something is in the way: a token, other answers, or no server."""

from __future__ import annotations

import re
from contextlib import ExitStack

import httpx
from browser import Visit
from playwright.sync_api import Browser, expect
from serving import TOKEN, Running, running, until
from visits import LONG, STORY, visiting

from edgevlm import Model


def test_a_wrong_token_says_so(visit: Visit) -> None:
    page = visit.page
    visit.forgiven.append("401")
    page.goto(f"{visit.url}/#token=not-the-token")
    expect(page.get_by_role("alert")).to_contain_text("That is not this server's token.")
    assert page.url == f"{visit.url}/"
    page.get_by_label("Token").fill("ünï")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("That is not this server's token.")
    page.get_by_label("Token").fill(f" {TOKEN} ")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model and adapter")).to_be_enabled()


def test_a_token_that_is_gone_leads_back_to_the_login(visit: Visit) -> None:
    page = visit.page
    visit.forgiven.append("401")
    visit.sign_in(TOKEN)
    page.evaluate("sessionStorage.setItem('edgevlm_token', 'of-yesterday')")
    visit.ask("Are you there?")
    visit.answered("failed")
    expect(page.get_by_role("alert")).to_contain_text("no longer takes this page's token")
    page.get_by_role("button", name="Sign in again").click()
    expect(page.get_by_role("alert")).to_contain_text("does not take the token that this page had")
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model and adapter")).to_be_enabled()
    # Another tab has the pass, and no token.
    with page.context.new_page() as other:
        other.goto(visit.url)
        expect(other.get_by_label("Token")).to_be_visible()


def test_a_busy_server_says_when_to_ask_again(browser: Browser, tiny: Model) -> None:
    long = {"stream": True, "response_format": LONG, "max_tokens": 1500}
    with (
        running(tiny, parallel=1, contexts=1, queue_size=1) as server,
        visiting(browser, server.url) as visit,
        server.client() as client,
    ):
        page, engine = visit.page, server.server.engine
        visit.forgiven.append("429")
        visit.sign_in(TOKEN)
        with client.stream("POST", "/v1/chat/completions", json=server.body(**long)) as first:
            lines = first.iter_lines()
            next(lines)  # its turn has come
            with page.context.new_page() as other:
                second = Visit(other, server.url)
                second.sign_in(TOKEN)
                second.ask("Is it my turn?")
                until(lambda: engine.queued == 1)
                visit.ask("And mine?")
                visit.answered("failed")
                expect(page.get_by_role("alert")).to_have_text(
                    re.compile(r"The server is busy with other answers\. Ask again in \d+ s\.")
                )
        page.get_by_role("button", name="Ask again").click()
        assert visit.answered()


def test_a_server_that_stops_is_told_and_one_that_is_back_goes_on(
    browser: Browser, tiny: Model
) -> None:
    with ExitStack() as first:
        server = first.enter_context(running(tiny))
        with visiting(browser, server.url) as visit:
            page = visit.page
            banner, problem = page.locator("#banner"), page.locator("div.problem").last
            visit.forgiven += ["Failed to load resource", "ERR_INCOMPLETE_CHUNKED_ENCODING"]
            visit.sign_in(TOKEN)
            with visit.asking_for(response_format=LONG):
                visit.ask(STORY)
                expect(page.locator(".said")).to_have_text(re.compile(r".{12}"))
                server.runner.force_exit = True  # as the second Ctrl-C does
                first.close()
                said = visit.answered("failed")
            assert len(said) >= 12, "what was said is kept"
            expect(problem).to_contain_text("stopped")
            expect(banner).to_contain_text("The server has stopped, or can't be reached.")
            visit.ask("Are you there?")
            visit.answered("failed")
            expect(problem).to_contain_text("The server can't be reached.")
            with running(tiny, port=int(server.url.rpartition(":")[2])):
                expect(banner).to_be_hidden()
                problem.get_by_role("button", name="Ask again").click()
                assert visit.answered()
                expect(problem).to_be_hidden()
            expect(banner).to_contain_text("The server has stopped")  # nobody had asked anything


def test_a_server_that_is_ending_says_so(browser: Browser, tiny: Model) -> None:
    with running(tiny) as server, visiting(browser, server.url) as visit:
        visit.forgiven.append("503")
        visit.sign_in(TOKEN)
        server.server.drain()
        expect(visit.page.locator("#banner")).to_contain_text("takes no more questions")


def test_the_page_needs_the_pass_and_the_pass_opens_nothing_else(page_server: Running) -> None:
    with httpx.Client(base_url=page_server.url) as stranger:
        assert stranger.get("/").status_code == 401
        for name in ("login.html", "login.js", "token.js", "style.css", "icon.svg"):
            assert stranger.get(f"/page/{name}").status_code == 200
        assert stranger.get("/page/app.js").status_code == 401
        assert stranger.get("/page/index.html").status_code == 401
        assert stranger.get("/page/..%2fpage.py").status_code == 404
        assert stranger.post("/page").status_code == 401
    with page_server.client() as client:
        passed = client.post("/page")
        assert passed.status_code == 204
        cookie = passed.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
    with httpx.Client(base_url=page_server.url, cookies=dict(passed.cookies)) as browser:
        index = browser.get("/")
        assert index.status_code == 200
        assert "default-src 'none'" in index.headers["content-security-policy"]
        for module in re.findall(r'from "\./(\w+\.js)"', browser.get("/page/app.js").text):
            response = browser.get(f"/page/{module}")
            assert response.headers["content-type"].startswith("text/javascript"), module
        assert browser.get("/v1/models").status_code == 401

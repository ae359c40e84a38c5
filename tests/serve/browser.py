"""A real browser, the system's own chromium, and what it was seen to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

CHAT = "**/v1/chat/completions"
# What an answer may take on a busy machine.
PATIENCE_MS = 60_000
_NOTE_GROWTH = """
window.lengths = [];
new MutationObserver(() => {
  const said = [...document.querySelectorAll(".said")].at(-1);
  if (said) window.lengths.push(said.textContent.length);
}).observe(document, { subtree: true, childList: true, characterData: true });
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Set EDGEVLM_TEST_CHROMIUM where it is not on the PATH."""
    path = os.environ.get("EDGEVLM_TEST_CHROMIUM") or shutil.which("chromium")
    assert path, "install chromium, or name it in EDGEVLM_TEST_CHROMIUM"
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # Its sandbox does not start for root, who runs tests in containers.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page in a browser of its own, at the server at `url`. `forgiven` are texts of console
    errors that a test means to cause."""

    page: Page
    url: str
    requests: list[Request] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    forgiven: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.add_init_script(_NOTE_GROWTH)

    def _heard(self, message: ConsoleMessage) -> None:
        # A browser notes that `/` asks for the token.
        address = message.location["url"].partition("#")[0]
        asked_for_token = "401" in message.text and address == f"{self.url}/"
        if message.type in ("error", "warning") and not asked_for_token:
            self.errors.append(message.text)

    def check(self) -> None:
        """Nothing went elsewhere, and nothing went wrong that was not meant to."""
        addresses = [urlsplit(request.url) for request in self.requests]
        own = urlsplit(self.url).netloc
        elsewhere = {a.netloc for a in addresses if a.scheme not in ("data", "blob")} - {own}
        assert not elsewhere, elsewhere
        unexpected = [e for e in self.errors if not any(text in e for text in self.forgiven)]
        assert not unexpected, unexpected

    def sign_in(self, token: str) -> None:
        self.page.goto(f"{self.url}/#token={token}")
        expect(self.page.get_by_label("Model and adapter")).to_be_enabled()

    def ask(self, question: str) -> None:
        """Ask, and wait until that is on the page."""
        before = self.page.locator(".exchange").count()
        self.page.get_by_label("Your question").fill(question)
        self.page.keyboard.press("Enter")
        expect(self.page.locator(".exchange")).to_have_count(before + 1)

    def answered(self, state: str = "done") -> str:
        """The last answer's text, once its state is that."""
        answer = self.page.locator(".answer").last
        expect(answer).to_have_attribute("data-state", state)
        return answer.locator(".said").inner_text()

    def facts(self) -> str:
        """The line below the last answer, with plain spaces."""
        return self.page.locator(".facts summary").last.inner_text().replace("\xa0", " ")

    def bodies(self) -> list[dict[str, Any]]:
        """What was asked of the model, request by request."""
        asked = [r.post_data for r in self.requests if r.url.endswith("/v1/chat/completions")]
        return [json.loads(body) for body in asked if body]

    @contextmanager
    def asking_for(self, **fields: Any) -> Iterator[None]:
        """Within the block each question to the model has these fields, too."""

        def more(route: Route) -> None:
            route.continue_(
                post_data=json.dumps(json.loads(route.request.post_data or "") | fields)
            )

        self.page.route(CHAT, more)
        try:
            yield
        finally:
            self.page.unroute(CHAT)


def server_events(text: str, own: dict[str, Any]) -> str:
    """An answer as the server streams it."""

    def event(delta: dict[str, str], finish: str | None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({'choices': [choice], **more})}\n\n"

    said = event({"role": "assistant", "content": text}, None)
    return said + event({}, "stop", edgevlm=own) + "data: [DONE]\n\n"

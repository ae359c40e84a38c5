"""How the page looks: on a phone, in both colour schemes, and without motion."""

from __future__ import annotations

import pytest
from browser import CHAT, Visit, server_events
from playwright.sync_api import expect
from serving import TOKEN
from visits import HOSTILE, OWN, PHOTO, choose

PHONE = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}


@pytest.mark.parametrize("visit", [PHONE], indirect=True)
def test_it_fits_a_phone(visit: Visit) -> None:
    page = visit.page

    def check(where: str) -> None:
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, f"{where}: {width} px wide"
        for button in page.locator("button:visible, select:visible").all():
            box = button.bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) >= 28, f"{where}: {button.inner_text()}"
            assert 0 <= box["x"] <= 360 - box["width"], f"{where}: {button.inner_text()}"

    page.goto(visit.url)
    expect(page.get_by_label("Token")).to_be_visible()
    check("login")
    visit.sign_in(TOKEN)
    check("welcome")
    choose(page, PHOTO)
    check("with a picture")
    page.route(CHAT, lambda route: route.fulfill(body=server_events("A" * 300, OWN)))
    visit.ask("W" * 200)
    visit.answered()
    page.locator(".facts summary").click()
    page.get_by_label("Model and adapter").select_option(HOSTILE)
    check("answered")
    page.route(CHAT, lambda route: route.fulfill(status=500))
    visit.forgiven.append("500")
    visit.ask("And now?")
    visit.answered("failed")
    check("failed")


@pytest.mark.parametrize(
    "visit",
    [{"color_scheme": "light"}, {"color_scheme": "dark"}],
    indirect=True,
    ids=["light", "dark"],
)
def test_its_colours_are_told_apart(visit: Visit) -> None:
    """At least 4.5 to 1 for text, WCAG 2.2's level AA."""
    visit.sign_in(TOKEN)
    names = "ground surface ink muted tint accent on-accent doubt doubt-ground bad bad-ground"
    colours = visit.page.evaluate(
        """(names) => names.map((name) =>
          getComputedStyle(document.documentElement).getPropertyValue(`--${name}`))""",
        names.split(),
    )
    light = {name: luminance(colour) for name, colour in zip(names.split(), colours, strict=True)}
    pairs = [
        (text, ground) for text in ("ink", "muted") for ground in ("ground", "surface", "tint")
    ]
    pairs += [("on-accent", "accent"), ("doubt", "doubt-ground"), ("bad", "bad-ground")]
    pairs += [("bad", "ground"), ("accent", "ground")]
    for text, ground in pairs:
        brighter, darker = max(light[text], light[ground]), min(light[text], light[ground])
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5, f"{text} on {ground}"
    dark = visit.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (light["ground"] < light["ink"]) == dark


def luminance(colour: str) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    channels = [int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("visit", [{"reduced_motion": "reduce"}], indirect=True)
def test_nothing_moves_for_who_wants_that(visit: Visit) -> None:
    page = visit.page
    visit.sign_in(TOKEN)
    page.route(CHAT, lambda _: None)
    visit.ask("Are you thinking?")
    expect(page.locator(".said")).to_have_text("Thinking…")
    assert page.evaluate("document.getAnimations().length") == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate("document.getAnimations().length") == 1

"""The page in a real browser: a conversation with the built-in model."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import CHAT, Visit, server_events
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect
from serving import TOKEN, Running
from visits import HOSTILE, LONG, OWN, PHOTO, STORY, choose


def shape(folder: Path) -> Path:
    picture = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(picture).ellipse((120, 70, 280, 230), fill=(200, 30, 30))
    picture.save(folder / "circle.png")
    return folder / "circle.png"


def pictures_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    contents = [message["content"] for message in body["messages"]]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part for part in parts if part["type"] == "image_url"]


def decoded(part: dict[str, Any]) -> Image.Image:
    head, _, data = part["image_url"]["url"].partition(",")
    assert head in ("data:image/jpeg;base64", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def test_a_conversation_about_a_photograph(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.sign_in(TOKEN)
    assert page.url == f"{visit.url}/"
    choose(page, PHOTO)
    visit.ask("What is in this picture?")
    assert re.search("coffee|espresso", visit.answered(), re.IGNORECASE)
    assert len(set(page.evaluate("window.lengths"))) > 4, "the answer did not come bit by bit"
    assert "Answered on this device · nothing left this device" in visit.facts()
    assert re.search(r"first token [\d.]+ m?s · [\d.]+ tokens/s$", visit.facts())

    visit.ask("Describe it in more words.")
    answer = visit.answered()
    first, second = visit.bodies()
    assert second["messages"][0] == first["messages"][0]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert len(pictures_of(second)[0]["uuid"]) == 32
    page.locator(".facts summary").last.click()
    expect(page.locator(".facts dl").last).to_contain_text("known from before")
    assert answer in page.get_by_role("log").inner_text().replace("\n", " ")

    page.get_by_label("Model and adapter").select_option("Shapes and their colours")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".exchange")).to_have_count(0)
    choose(page, shape(tmp_path))
    visit.ask("Which colour is the shape?")
    assert "red" in visit.answered().lower()
    assert visit.facts().endswith("adapter shapes")
    assert visit.bodies()[-1]["model"] == "edgevlm-tiny:shapes"


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_an_answer_is_stopped(visit: Visit, page_server: Running, way: str) -> None:
    page = visit.page
    visit.sign_in(TOKEN)
    with visit.asking_for(response_format=LONG):
        visit.ask(STORY)
        expect(page.locator(".said")).to_have_text(re.compile(r".{12}"))
        if way == "Escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Stop the answer").click()
        said = visit.answered("stopped")
    expect(page.locator(".ending")).to_have_text("Stopped here.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.wait_for_function("document.activeElement.id === 'question'")
    visit.ask("What is two and two?")
    visit.answered()
    assert visit.bodies()[-1]["messages"][1] == {"role": "assistant", "content": said}
    assert page_server.server.engine.active == 0


def test_a_picture_whose_question_was_stopped_goes_with_the_next(visit: Visit) -> None:
    page = visit.page
    visit.sign_in(TOKEN)
    choose(page, PHOTO)
    page.route(CHAT, lambda _: None)  # never gets there
    visit.ask("What is this?")
    page.keyboard.press("Escape")
    visit.answered("stopped")
    page.unroute(CHAT)
    visit.ask("What is in this picture?")
    assert re.search("coffee|espresso", visit.answered(), re.IGNORECASE)
    [message] = visit.bodies()[-1]["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]


@pytest.mark.parametrize(
    "visit", [{"permissions": ["clipboard-read", "clipboard-write"]}], indirect=True
)
def test_a_picture_is_pasted(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.sign_in(TOKEN)
    url = "data:image/png;base64," + base64.b64encode(shape(tmp_path).read_bytes()).decode()
    page.evaluate(
        """async (data) => {
          const bytes = Uint8Array.from(atob(data.split(",")[1]), (c) => c.charCodeAt(0));
          const blob = new Blob([bytes], { type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        url,
    )
    page.keyboard.press("Control+V")
    expect(page.get_by_role("button", name="Remove")).to_have_count(1)
    page.keyboard.press("Enter")  # a picture alone is a question
    expect(page.locator(".asked")).to_have_text("Describe this image.")
    visit.answered()
    assert decoded(pictures_of(visit.bodies()[0])[0]).getpixel((200, 150)) == (200, 30, 30)


def test_a_dropped_picture_leaves_its_whereabouts_behind(visit: Visit) -> None:
    """Rotated by its EXIF, which tells a place: sent upright, smaller, and without."""
    page = visit.page
    visit.sign_in(TOKEN)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)
    data = io.BytesIO()
    picture = Image.new("RGB", (3000, 1500), "navy")
    picture.paste("gold", (0, 0, 1500, 1500))
    picture.save(data, "JPEG", exif=exif)
    assert b"Exif" in data.getvalue()
    transfer = page.evaluate_handle(
        """(data) => {
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "holiday.jpg", { type: "image/jpeg" }));
          return transfer;
        }""",
        base64.b64encode(data.getvalue()).decode(),
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop the picture to ask about it")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.get_by_role("button", name="Remove holiday.jpg")).to_be_visible()
    expect(page.get_by_text("Drop the picture to ask about it")).to_be_hidden()
    visit.ask("What is this?")
    visit.answered()
    sent = decoded(pictures_of(visit.bodies()[0])[0])
    assert sent.size == (1024, 2048)
    assert b"Exif" not in base64.b64decode(
        pictures_of(visit.bodies()[0])[0]["image_url"]["url"][23:]
    )
    assert sent.getpixel((512, 500))[2] < 100 < sent.getpixel((512, 500))[0], "gold is above"


def test_pictures_are_taken_out_again_and_others_refused(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.sign_in(TOKEN)
    choose(page, PHOTO, shape(tmp_path))
    page.get_by_role("button", name="Remove photo.jpg").click()
    expect(page.get_by_role("button", name="Remove")).to_have_count(1)
    page.get_by_role("button", name="Remove circle.png").click()
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    (tmp_path / "notes.txt").write_text("not a picture")
    page.set_input_files("#files", tmp_path / "notes.txt")
    expect(page.get_by_role("alert")).to_contain_text("notes.txt is not a picture")


def focused(page: Page) -> tuple[str, bool]:
    """The name of what has the focus, and whether that is to be seen."""
    name, outlined = page.evaluate(
        """() => {
          const element = document.activeElement;
          const box = element.closest(".box") ?? element;
          const drawn = (each) => getComputedStyle(each).outlineStyle !== "none";
          const name = element.getAttribute("aria-label") ?? element.labels?.[0]?.textContent;
          return [name ?? element.textContent.trim(), drawn(element) || drawn(box)];
        }"""
    )
    return name, outlined


def test_it_works_by_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    page.on("filechooser", lambda chooser: chooser.set_files(PHOTO))
    page.goto(visit.url)
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model and adapter")).to_be_enabled()
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # on the button that adds pictures
    expect(page.get_by_role("button", name="Remove photo.jpg")).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type("What is in")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("this picture?")
    expect(page.get_by_label("Your question")).to_have_value("What is in\nthis picture?")
    page.keyboard.press("Enter")
    visit.answered()
    assert focused(page) == ("Your question", True)
    way = []
    for _ in range(4):
        page.keyboard.press("Shift+Tab")
        name, outlined = focused(page)
        assert outlined, name
        way.append(name)
    assert way.pop(1).startswith("Answered on this device")
    assert way == ["Add pictures", "New conversation", "Model and adapter"]
    page.keyboard.type("Sha")
    expect(page.get_by_label("Model and adapter")).to_have_value("edgevlm-tiny:shapes")


def test_what_others_wrote_is_text(visit: Visit) -> None:
    """Adapters' titles, notices and what a model says are no HTML."""
    page = visit.page
    visit.sign_in(TOKEN)
    titles = page.get_by_label("Model and adapter").locator("option").all_inner_texts()
    assert HOSTILE in titles
    schema = {"type": "json_schema", "json_schema": {"schema": {"const": HOSTILE}}}
    with visit.asking_for(response_format=schema):
        visit.ask(HOSTILE)
        assert HOSTILE in json.loads(visit.answered())
    expect(page.locator(".asked")).to_have_text(HOSTILE)
    page.route(CHAT, lambda route: route.fulfill(body=server_events(HOSTILE, OWN)))
    visit.ask("And in a notice?")
    visit.answered()
    expect(page.locator(".notices").last).to_have_text(OWN["notices"][0])
    assert page.locator("img[src=x], .said b, .notices b").count() == 0
    assert page.title() == "EdgeVLM"


def test_below_an_answer_stands_where_it_came_from(visit: Visit) -> None:
    page = visit.page
    visit.sign_in(TOKEN)
    page.route(CHAT, lambda route: route.fulfill(body=server_events("A tibia.", OWN)))
    visit.ask("Which bone is it?")
    visit.answered()
    assert visit.facts() == (
        "Answered in the cloud · 612 bytes of text and 84 kB of pictures left this device"
        " · 41% sure · first token 1.3 s · 61 tokens/s · adapter medical:0.8"
    )
    expect(page.get_by_text("Not sure.")).to_be_visible()
    page.locator(".facts summary").click()
    for told in ("the answer made here was unsure", "$0.0013", "onnx and llamacpp"):
        expect(page.locator(".facts dl")).to_contain_text(told)

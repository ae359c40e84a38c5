"""Pictures named inside a question."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.media import find_image_paths

FILES = ("a.jpg", "b.PNG", "c.tiff", "my photo.jpg", "it's (1).webp", "notes.txt")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in FILES:
        (folder / name).touch()
    (folder / "album.jpg").mkdir()
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    ("prompt", "text", "paths"),
    [
        # In place of a noun.
        ("what is in a.jpg?", "what is in the picture?", ["a.jpg"]),
        ("describe ./a.jpg", "describe the picture", ["./a.jpg"]),
        ("What does b.PNG say?", "What does the picture say?", ["b.PNG"]),
        ("who is in a.jpg and where", "who is in the picture and where", ["a.jpg"]),
        ("what is a.jpg's main colour?", "what is the picture's main colour?", ["a.jpg"]),
        ("can you see (a.jpg)?", "can you see the picture?", ["a.jpg"]),
        # Only shown.
        ("a.jpg", "", ["a.jpg"]),
        ("a.jpg what is this?", "what is this?", ["a.jpg"]),
        ("a.jpg: what is this?", "what is this?", ["a.jpg"]),
        ("what is this a.jpg?", "what is this?", ["a.jpg"]),
        ("Is it a dog? a.jpg", "Is it a dog?", ["a.jpg"]),
        ("Who is this?\na.jpg", "Who is this?", ["a.jpg"]),
        ("the photo a.jpg shows what?", "the photo shows what?", ["a.jpg"]),
        # Several.
        (
            "compare a.jpg and b.PNG",
            "compare the first picture and the second picture",
            ["a.jpg", "b.PNG"],
        ),
        (
            "compare a.jpg b.PNG",
            "compare the first picture and the second picture",
            ["a.jpg", "b.PNG"],
        ),
        ("a.jpg b.PNG which is older?", "which is older?", ["a.jpg", "b.PNG"]),
        (
            "which one, a.jpg, b.PNG or c.tiff?",
            "which one, the first picture, the second picture or the third picture?",
            ["a.jpg", "b.PNG", "c.tiff"],
        ),
        # As shells and terminals write names.
        ("what is in 'my photo.jpg'?", "what is in the picture?", ["my photo.jpg"]),
        ('what is in "my photo.jpg"?', "what is in the picture?", ["my photo.jpg"]),
        (r"what is in my\ photo.jpg?", "what is in the picture?", ["my photo.jpg"]),
        ("what is in my photo.jpg?", "what is in the picture?", ["my photo.jpg"]),
        ("my photo.jpg", "", ["my photo.jpg"]),
        (r"it\'s\ \(1\).webp what is it", "what is it", ["it's (1).webp"]),
        (r"'it'\''s (1).webp' what is it", "what is it", ["it's (1).webp"]),
        # URLs.
        (
            "see https://pictures.test/a/x.JPG?w=3, is it red?",
            "see the picture, is it red?",
            ["https://pictures.test/a/x.JPG?w=3"],
        ),
        (
            "what is in https://pictures.test/x.png?",
            "what is in the picture?",
            ["https://pictures.test/x.png"],
        ),
        # The rest of the text stays as it is.
        (
            "Look at a.jpg.\n\n  1. What   is it?\n  2. Don't guess.",
            "Look at the picture.\n\n  1. What   is it?\n  2. Don't guess.",
            ["a.jpg"],
        ),
        ("a.jpgは何ですか", "は何ですか", ["a.jpg"]),
    ],
)
def test_pictures_become_words_or_nothing(prompt: str, text: str, paths: list[str]) -> None:
    assert find_image_paths(prompt) == (text, paths)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "  What is the time?  ",
        "what is in missing.jpg?",
        "is notes.txt ok?",
        "open album.jpg",
        "a.jpg.txt",
        "what about a.jpgx or xa.jpg",
        "http://pictures.test/x.png",
        "https://pictures.test/x.html",
        "https://pictures.test/png",
        "https://[.jpg",
        ".jpg",
        "nul \0.jpg",
        "x" * 9000 + ".jpg",
        "'.jpg \".jpg \\.jpg",
    ],
)
def test_what_names_no_picture_is_left_alone(prompt: str) -> None:
    assert find_image_paths(prompt) == (prompt, [])


def test_absolute_and_home_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("USERPROFILE", str(Path.cwd()))
    absolute = str(Path("a.jpg").absolute())
    assert find_image_paths(f"read {absolute}") == ("read the picture", [absolute])
    assert find_image_paths("read ~/a.jpg") == ("read the picture", ["~/a.jpg"])


def test_a_name_with_the_space_of_macos_screenshots() -> None:
    name = "Screenshot at 3.04.05\N{NARROW NO-BREAK SPACE}PM.png"
    Path(name).touch()
    escaped = name.replace(" ", r"\ ")
    assert find_image_paths(f"{escaped} what is open?") == ("what is open?", [name])


def test_pictures_shown_before_count() -> None:
    text, paths = find_image_paths("is it older than a.jpg?", shown_before=1)
    assert text == "is it older than the second picture?"
    assert paths == ["a.jpg"]
    text, _ = find_image_paths("is it older than a.jpg?", shown_before=9)
    assert text == "is it older than picture 10?"

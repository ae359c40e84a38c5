"""Small English: articles, plurals, lists and places, as questions and answers need them."""

from __future__ import annotations

from collections.abc import Sequence

from seen import COLUMNS, MATERIALS, NUMBERS, ROWS, SURFACES

ARTICLES = ("a ", "an ", "the ", "some ")
_PLURALS = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice",
    "goose": "geese", "sheep": "sheep", "fish": "fish", "foot": "feet", "tooth": "teeth",
    "leaf": "leaves", "knife": "knives", "wolf": "wolves", "shelf": "shelves", "deer": "deer",
    "loaf": "loaves", "half": "halves", "elf": "elves", "ox": "oxen", "aircraft": "aircraft",
    "bison": "bison", "moose": "moose", "squid": "squid", "shrimp": "shrimp", "dice": "dice",
    "cactus": "cacti", "scarf": "scarves", "calf": "calves", "snowman": "snowmen",
    "tomato": "tomatoes", "potato": "potatoes", "volcano": "volcanoes", "hero": "heroes",
    "mango": "mangoes", "superhero": "superheroes", "fireman": "firemen", "policeman": "policemen",
}  # fmt: skip
_SOUNDS_LIKE_YOU = ("uni", "use", "uku", "eu", "one")
_MADE_OF = {"wooden": "wood", "metal": "metal", "stone": "stone"}
_ROW_WORDS = {"top": "top", "middle": "", "bottom": "bottom"}


def bare(name: str) -> str:
    return next((name.removeprefix(a) for a in ARTICLES if name.startswith(a)), name)


def counts(name: str) -> bool:
    """Whether there can be two of it: "a cat", but not "bread" or "glasses"."""
    return name.startswith(("a ", "an "))


def is_plural(name: str) -> bool:
    return not name.startswith(ARTICLES) and name.endswith("s") and not name.endswith("ss")


def with_article(phrase: str) -> str:
    vowel = phrase[0].lower() in "aeiou" and not phrase.startswith(_SOUNDS_LIKE_YOU)
    return f"an {phrase}" if vowel or phrase.startswith("hour") else f"a {phrase}"


def coloured(name: str, surface: int) -> str:
    """ "a cat" as "a red cat"; -1 for none."""
    phrase = described(name, surface)
    if phrase == bare(name):
        return name
    return with_article(phrase) if name.startswith(ARTICLES) else phrase


def described(name: str, surface: int) -> str:
    """ "a cat" as "red cat"."""
    if surface < 0 or SURFACES[surface] in name.split():
        return bare(name)
    return f"{SURFACES[surface]} {bare(name)}"


def plural(noun: str) -> str:
    head, of, rest = noun.partition(" of ")
    first, _, last = head.rpartition(" ")
    return f"{first} {_plural_word(last)}".lstrip() + of + rest


def _plural_word(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    return f"{word}s"


def several(number: int, name: str, surface: int) -> str:
    """ "a red cat", "two cats"."""
    if number == 1:
        return coloured(name, surface)
    noun = described(name, surface)
    return f"{NUMBERS[number]} {plural(noun) if counts(name) else noun}"


def listing(items: Sequence[str]) -> str:
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def where(row: int, column: int) -> str:
    """ "at the top left", "on the right", "in the middle"."""
    up, side = _ROW_WORDS[ROWS[row]], COLUMNS[column]
    if side == "center":
        return f"at the {up}" if up else "in the middle"
    return f"at the {up} {side}" if up else f"on the {side}"


def is_material(surface: int) -> bool:
    return SURFACES[surface] in MATERIALS


def made_of(surface: int) -> str:
    return _MADE_OF[SURFACES[surface]]

"""Medical terms and their definitions, out of WordNet 3.0, and which of them are held out.

    python recipes/adapters/medical_terms.py        # counts, and some of every kind

The nouns below a few synsets (ROOTS) are the terms. WordNet's files are described in wndb(5WN).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["anatomy", "condition", "finding", "procedure", "instrument", "medicine", "field"]

# Synsets of Debian's wordnet-base 1:3.0-37 by their offsets in data.noun. One that is below two
# roots is of the first.
ROOTS: tuple[tuple[str, Kind], ...] = (
    ("05220461", "anatomy"),  # body part
    ("14052046", "condition"),  # ill health
    ("14061805", "condition"),  # illness
    ("14070360", "condition"),  # disease
    ("14051917", "condition"),  # pathological state
    ("14052403", "condition"),  # disorder
    ("14204950", "condition"),  # pathology
    ("14285662", "condition"),  # injury
    ("14465048", "condition"),  # birth defect
    ("14083790", "condition"),  # mental disorder
    ("14235200", "condition"),  # tumor
    ("14174549", "condition"),  # infection
    ("14299637", "finding"),  # symptom
    ("01024392", "procedure"),  # medical procedure
    ("00661091", "procedure"),  # therapy
    ("00657604", "procedure"),  # medical care
    ("00671351", "procedure"),  # operation
    ("00177127", "procedure"),  # diagnostic procedure
    ("03739693", "instrument"),  # medical instrument
    ("04364545", "instrument"),  # surgical instrument
    ("04013729", "instrument"),  # prosthesis
    ("02785648", "instrument"),  # bandage
    ("03237639", "instrument"),  # dressing
    ("03740161", "medicine"),  # medicine
    ("04517535", "medicine"),  # vaccine
    ("06045562", "field"),  # medical science
)
# Diseases of animals and of plants.
NOT_HUMAN = ("14253124", "14276936")
# Anatomy is of bodies, not of animals and plants alone.
_FILES: dict[Kind, frozenset[str]] = {"anatomy": frozenset(("08", "26"))}
_LEFT_OUT = re.compile(
    r"\b(?:slang|informal|obscene|vulgar|offensive|disparag\w*|insult\w*|taboo|mustache|beard|hairdo"
    r"|hairstyle|insects?|arthropods?|mollus[ck]s?|fish(?:es)?|birds?|reptiles?|horses?|cattle"
    r"|sheep|dogs?|plants?|nonhuman|livestock|poultry)\b"
)
# Coarse, or not said of people any more.
_NOT_SAID = re.compile(
    r"tit|tit+y|knocker|boob|bosom|hooter|bum|arse|ass|butt|can|tail|tush|tooshie|prat|fanny|ball"
    r"|bollock|ballock|nut|egg|mongolism|mongolianism|idiocy|imbecility|moronity|cretinism"
    r"|feeblemindedness|insanity|lunacy|madness|cripple|wooden leg|peg|pegleg"
)
_EXAMPLE = re.compile(r";?\s*\"")
_FIELD = re.compile(r"^\([a-z ]+\) ")
# Begins with a plural or a verb: "is" would not go before it.
_NOT_AFTER_IS = re.compile(r"(?!\w+(?:ss|us|is|os|tes|pes|res)\b)\w+s\b")
_LETTERS = re.compile(r"[A-Za-z][A-Za-z' -]*")
FEWEST_WORDS, MOST_WORDS = 3, 30
# Definitions that share this much of their words are of the same concept.
ALIKE = 0.6
HELD_OUT_SHARE = 0.2
SEED = "medical-1"
_SMALL_WORDS = frozenset(
    (
        "a",
        "an",
        "and",
        "any",
        "as",
        "at",
        "by",
        "for",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "the",
        "to",
    )
)


@dataclass(frozen=True, slots=True)
class Term:
    """`name` is the usual word for it, `also` are others, `broader` is what it is a kind of or
    "". `definition` is WordNet's own text, without a stop. Terms of one `concept` are synonyms,
    or are defined nearly alike."""

    name: str
    also: tuple[str, ...]
    kind: Kind
    broader: str
    definition: str
    offset: str
    concept: str = ""


@dataclass(frozen=True, slots=True)
class _Synset:
    file: str
    words: tuple[str, ...]
    above: tuple[str, ...]
    below: tuple[str, ...]
    gloss: str


class Nouns:
    """WordNet's nouns, of a folder with `data.noun` and `index.noun`."""

    def __init__(self, folder: Path) -> None:
        self._synsets = dict(_synsets(folder / "data.noun"))
        self._first = dict(_first_senses(folder / "index.noun"))

    def below(self, root: str) -> Iterator[str]:
        """The offsets of everything that is a kind of `root`."""
        seen, waiting = {root}, [root] if root in self._synsets else []
        while waiting:
            offset = waiting.pop()
            yield offset
            new = [other for other in self._synsets[offset].below if other not in seen]
            seen.update(new)
            waiting += new

    def file(self, offset: str) -> str:
        return self._synsets[offset].file

    def definition(self, offset: str) -> str:
        return defined(self._synsets[offset].gloss)

    def term(self, offset: str, kind: Kind) -> Term | None:
        """None where no word means this before all else, or where it is not well defined."""
        synset = self._synsets[offset]
        words = [
            word
            for word in synset.words
            if _LETTERS.fullmatch(word) and not _NOT_SAID.fullmatch(word)
        ]
        usual = next((word for word in words if self._first.get(_key(word)) == offset), None)
        definition = defined(synset.gloss)
        if usual is None or _LEFT_OUT.search(definition) or _NOT_AFTER_IS.match(definition):
            return None
        if not FEWEST_WORDS <= len(definition.split()) <= MOST_WORDS:
            return None
        also = tuple(word for word in words if word != usual)
        broader = self._synsets[synset.above[0]].words[0] if synset.above else ""
        return Term(usual, also, kind, broader, definition, offset)


def defined(gloss: str) -> str:
    """A gloss without its field, its examples and, where it is long, its later clauses."""
    text = _FIELD.sub("", _EXAMPLE.split(gloss)[0]).strip().rstrip(";.").strip()
    clauses = text.split("; ")
    while len(clauses) > 1 and len("; ".join(clauses).split()) > MOST_WORDS:
        clauses.pop()
    return "; ".join(clauses)


def read_terms(folder: Path, roots: Sequence[tuple[str, Kind]] = ROOTS) -> list[Term]:
    """All terms below the roots, each name once, with their concepts."""
    nouns = Nouns(folder)
    kinds: dict[str, Kind] = {}
    not_human = {offset for root in NOT_HUMAN for offset in nouns.below(root)}
    for root, kind in roots:
        for offset in set(nouns.below(root)) - not_human:
            if nouns.file(offset) in _FILES.get(kind, (nouns.file(offset),)):
                kinds.setdefault(offset, kind)
    found = (nouns.term(offset, kind) for offset, kind in sorted(kinds.items()))
    return group([term for term in found if term is not None])


def group(terms: Sequence[Term]) -> list[Term]:
    """The same terms with their concepts: each is called by its first term's name."""
    tied_to = list(range(len(terms)))

    def root(row: int) -> int:
        while tied_to[row] != row:
            tied_to[row] = row = tied_to[tied_to[row]]
        return row

    by_word: dict[str, int] = {}
    for row, term in enumerate(terms):
        for word in (term.name, *term.also):
            tied_to[root(row)] = root(by_word.setdefault(_key(word), row))
    for row, other in _alike([term.definition for term in terms]):
        tied_to[root(row)] = root(other)
    first: dict[int, str] = {}
    for row, term in enumerate(terms):
        first.setdefault(root(row), term.name)
    return [
        Term(t.name, t.also, t.kind, t.broader, t.definition, t.offset, first[root(row)])
        for row, t in enumerate(terms)
    ]


def split(terms: Sequence[Term], keep: Collection[str] = ()) -> tuple[list[Term], list[Term]]:
    """Those to learn from and those held out, by concept. `keep` are names to learn in any
    case, with all of their concept."""
    kept = {term.concept for term in terms if term.name in keep}
    held_out = {t.concept for t in terms if _lot(t.concept) < HELD_OUT_SHARE} - kept
    learn = [term for term in terms if term.concept not in held_out]
    return learn, [term for term in terms if term.concept in held_out]


def _lot(concept: str) -> float:
    """From 0 to 1, by the name alone: a term more or less moves no other."""
    digest = hashlib.sha256(f"{SEED}/{_key(concept)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _alike(definitions: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Rows of definitions whose sets of words overlap by ALIKE or more (Jaccard)."""
    words = [set(re.findall(r"[a-z]+", text.lower())) - _SMALL_WORDS for text in definitions]
    rows_with: dict[str, list[int]] = defaultdict(list)
    for row, mine in enumerate(words):
        shared = Counter(other for word in mine for other in rows_with[word])
        for other, count in shared.items():
            if count >= ALIKE * (len(mine) + len(words[other]) - count):
                yield row, other
        for word in mine:
            rows_with[word].append(row)


def _synsets(path: Path) -> Iterator[tuple[str, _Synset]]:
    with path.open(encoding="latin-1") as lines:
        for line in lines:
            if line.startswith("  "):  # the licence
                continue
            head, _, gloss = line.partition(" | ")
            cells = head.split()
            end = 4 + 2 * int(cells[3], 16)
            words = tuple(word.replace("_", " ") for word in cells[4:end:2])
            tied: Mapping[str, list[str]] = defaultdict(list)
            for at in range(end + 1, end + 1 + 4 * int(cells[end]), 4):
                symbol, offset, part = cells[at : at + 3]
                if part == "n":
                    tied[symbol].append(offset)
            above, below = tuple(tied["@"]), tuple(tied["~"])
            yield cells[0], _Synset(cells[1], words, above, below, gloss.strip())


def _first_senses(path: Path) -> Iterator[tuple[str, str]]:
    """Each word with the synset that it means most often."""
    with path.open(encoding="latin-1") as lines:
        for line in lines:
            if not line.startswith("  "):
                cells = line.split()
                yield cells[0].replace("_", " "), cells[-int(cells[2])]


def _key(word: str) -> str:
    return word.lower().replace("_", " ")


def main() -> None:
    from medical_data import wordnet  # which imports this

    terms = read_terms(wordnet())
    learn, held_out = split(terms)
    print(f"{len(terms)} terms, {len(learn)} to learn from, {len(held_out)} held out")
    print(Counter(term.kind for term in terms))
    print(Counter(Counter(term.concept for term in terms).values()))
    for term in terms[:: len(terms) // 40]:
        print(f"{term.kind}: {term.name} {term.also}, {term.broader}: {term.definition}")


if __name__ == "__main__":
    main()

"""What is asked about medical terms, and what is answered: WordNet's words in plain sentences.

Nothing here says that an answer is no diagnosis: the pack's `notice` does, beside every answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

import beside_tiny  # noqa: F401
from medical_terms import Kind, Term
from questions import Exchange

WHAT_IS = (
    "What is {term}?",
    "What's {term}?",
    "Explain {term}.",
    "What does the word {bare} mean?",
    "Define {bare}.",
    "What is meant by {bare} in medicine?",
    "Tell me what {term} is.",
)
# Asked of held-out terms only, beside the first of WHAT_IS.
HELD_OUT_WHAT_IS = ("Can you explain {term}?", "What does {bare} mean?")
WHICH_TERM = (
    "What is the medical term for {definition}?",
    "Which medical term means: {definition}?",
    "What do doctors call {definition}?",
)
THAT_IS = "That is"
KINDS: dict[Kind, str] = {
    "anatomy": "a part of the body",
    "condition": "a medical condition",
    "finding": "a symptom or a sign",
    "procedure": "a medical procedure",
    "instrument": "a medical instrument or aid",
    "medicine": "a medicine",
    "field": "a branch of medicine",
}
# What people ask a doctor about.
PERSONAL: frozenset[Kind] = frozenset(("condition", "finding", "procedure", "medicine"))
# A condition may be a symptom of another.
_OVERLAP: frozenset[Kind] = frozenset(("condition", "finding"))
REFUSALS = (
    "I can't tell that. I explain medical terms and can't examine anyone: please ask a doctor.",
    "I can't say that from here. A doctor can find out; if it is urgent, call emergency services.",
    "That is for a doctor to judge. I only explain what medical terms mean.",
)
DO_I_HAVE = (
    "Do I have {bare}?",
    "Could this be {bare}?",
    "I feel ill. Is it {bare}?",
    "Does my child have {bare}?",
    "Can you tell me if I have {bare}?",
)
SHOULD_I_TAKE = (
    "Should I take {bare}?",
    "How much {bare} should I take?",
    "Can I stop taking {bare}?",
    "Is {bare} safe for me?",
)
SHOULD_I_HAVE = ("Do I need {bare}?", "Should I have {bare}?")
ABOUT_A_PICTURE = (
    "Is this mole cancer?",
    "Is this infected?",
    "What is wrong with me?",
    "Is it broken?",
    "What disease is this?",
    "Do I need to see a doctor about this?",
    "Which medicine helps against this?",
)

_MASS = re.compile(
    r"^(?:an?|any|one)\b.*?\b(?:fluid|liquid|secretion|substance|hormone|juice|tissue|protein"
    r"|enzyme|mucus|inflammation|condition|disease|disorder|surgery|pain)\b"
)
_ONE = re.compile(r"(?:an?|any|one)\b")


def with_article(term: Term) -> str:
    """As in a sentence: "the femur", "a stethoscope", "tachycardia"."""
    if term.kind not in ("anatomy", "instrument") or term.name[0].isupper():
        return term.name
    if _MASS.match(term.definition):
        return term.name
    if term.kind == "anatomy" and (_plural(term.name) or not _ONE.match(term.definition)):
        return f"the {term.name}"
    return f"{'an' if term.name[0] in 'aeiou' else 'a'} {term.name}"


def definition_sentence(term: Term) -> str:
    are = "are" if _plural(term.name) and term.kind == "anatomy" else "is"
    return f"{_capital(with_article(term))} {are} {term.definition}."


def what_is(term: Term, phrasing: str) -> Exchange:
    question = phrasing.format(term=with_article(term), bare=term.name)
    return Exchange(question, definition_sentence(term))


def which_term(term: Term, phrasing: str) -> Exchange:
    return Exchange(phrasing.format(definition=_inner(term.definition)), f"{THAT_IS} {term.name}.")


def also_called(term: Term) -> Exchange:
    called = _listed(term.also[:3])
    return Exchange(
        f"What else is {with_article(term)} called?",
        f"{_capital(with_article(term))} is also called {called}.",
    )


def kind_of(term: Term) -> Exchange:
    return Exchange(
        f"What kind of thing is {with_article(term)}?",
        f"{_capital(with_article(term))} is a kind of {term.broader}.",
    )


def category(term: Term, asked: Kind) -> Exchange:
    """Whether it is of a kind, with the true one in the answer."""
    subject, true = with_article(term), KINDS[term.kind]
    question = f"Is {subject} {KINDS[asked]}?"
    if asked == term.kind:
        return Exchange(question, f"Yes, {subject} is {true}.")
    return Exchange(question, f"No, {subject} is {true}.")


def refusal(term: Term, rng: random.Random) -> Exchange:
    """A question that only a doctor can answer, about a term of a PERSONAL kind."""
    if term.kind == "medicine":
        question = rng.choice(SHOULD_I_TAKE)
    elif term.kind == "procedure":
        question = rng.choice(SHOULD_I_HAVE)
    else:
        question = rng.choice(DO_I_HAVE)
    answer = rng.choice(REFUSALS)
    if rng.random() < 0.5:
        answer = f"{answer} {definition_sentence(term)}"
    return Exchange(question.format(bare=term.name), answer)


def text_conversation(terms: Sequence[Term], rng: random.Random) -> list[Exchange]:
    """Each term explained or sought, and some asked about further."""
    return [exchange for term in terms for exchange in _about(term, rng)]


def _about(term: Term, rng: random.Random) -> Iterator[Exchange]:
    draw = rng.random()
    if draw < 0.62:
        yield what_is(term, rng.choice(WHAT_IS))
    elif draw < 0.84:
        yield which_term(term, rng.choice(WHICH_TERM))
    else:
        asked = term.kind if rng.random() < 0.5 else rng.choice(others(term.kind))
        yield category(term, asked)
    further = rng.random()
    if further < 0.1 and term.also:
        yield also_called(term)
    elif further < 0.2 and term.broader and term.broader not in term.definition:
        yield kind_of(term)


def others(kind: Kind) -> list[Kind]:
    """Kinds that a term of this kind surely is not of."""
    near = _OVERLAP if kind in _OVERLAP else {kind}
    return [other for other in KINDS if other not in near]


def _plural(name: str) -> bool:
    """Whether a name of anatomy is one: "arteries", and not "pelvis", "abdominal aortic plexus"."""
    last = name.split()[-1]
    return last.endswith("s") and not last.endswith(("ss", "us", "is", "as", "ps", "os"))


def _inner(definition: str) -> str:
    """A definition inside of a sentence."""
    word = definition.split()[0]
    return definition if not word[1:].islower() else word.lower() + definition[len(word) :]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"

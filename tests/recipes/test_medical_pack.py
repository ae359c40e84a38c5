"""That terms are read and kept apart by concept, and that what is learned of them is well said."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import medical_talk
import numpy as np
import pytest
from check_medical import Row, defers, perplexity_row, read_held_out, share_row
from lora_factory import write_peft
from medical_data import conversation, texts, write_lines
from medical_scores import Score, Scorer
from medical_talk import KINDS, definition_sentence, which_term, with_article
from medical_terms import Kind, Term, defined, group, read_terms, split

from edgevlm import Model, load_model
from edgevlm.adapters.training.data import read_examples
from edgevlm.adapters.training.recipe import make_recipe
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.sampling import log_normalizer
from edgevlm.families.base import Turn

PACK = Path(__file__).parents[2] / "adapters" / "medical"

UNDOTTED = str.maketrans("?.,:", "    ")

# In the form of wndb(5WN): offset, file, part, words, pointers, gloss.
DATA = """\
  1 The licence is in lines that begin with blanks.
00000100 26 n 01 disease 0 002 ~ 00000200 n 0000 ~ 00000300 n 0000 | a lack of health; "a long disease"
00000200 26 n 02 fast_heart 0 tachycardia 0 001 @ 00000100 n 0000 | (medicine) a heart beat that is too quick; "her fast heart"
00000300 26 n 01 blight 0 002 @ 00000100 n 0000 ~ 00000400 n 0000 | any disease that kills plants
00000400 26 n 01 slow_heart 0 001 @ 00000300 n 0000 | a heart beat that is too slow
00000500 08 n 01 stone 0 000 | veins of a thing that is not said well
00000600 08 n 01 thigh_bone 0 000 | the longest bone of the leg; from hip to knee
"""  # noqa: E501
INDEX = """\
  1 The same here.
disease n 1 1 ~ 1 1 00000100
fast_heart n 2 1 @ 2 0 00000900 00000200
tachycardia n 1 1 @ 1 0 00000200
slow_heart n 1 1 @ 1 0 00000400
blight n 1 1 @ 1 0 00000300
stone n 1 1 @ 1 0 00000500
thigh_bone n 1 1 @ 1 0 00000600
"""
ROOTS: tuple[tuple[str, Kind], ...] = (
    ("00000100", "condition"),
    ("00000500", "anatomy"),
    ("00000600", "anatomy"),
)


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    (tmp_path / "data.noun").write_text(DATA, encoding="latin-1")
    (tmp_path / "index.noun").write_text(INDEX, encoding="latin-1")
    return tmp_path


def made_up(count: int) -> list[Term]:
    """Terms of all kinds, no two alike; every third has a synonym."""
    kinds = list(KINDS)

    def word(number: int) -> str:
        return "".join(chr(ord("a") + int(digit)) for digit in str(number))

    return group(
        [
            Term(
                f"name{word(i)}",
                (f"other{word(i)}",) if i % 3 == 0 else (),
                kinds[i % len(kinds)],
                "thing",
                f"a left{word(i)} of the right{word(i)}",
                f"{i:08}",
            )
            for i in range(count)
        ]
    )


def test_terms_are_of_the_words_that_mean_them_first_and_well_defined(wordnet: Path) -> None:
    found = {term.name: term for term in read_terms(wordnet, ROOTS)}

    assert set(found) == {"disease", "tachycardia", "slow heart", "thigh bone"}
    assert found["tachycardia"].also == ("fast heart",)
    assert found["tachycardia"].broader == "disease"
    assert found["tachycardia"].definition == "a heart beat that is too quick"
    assert found["thigh bone"].kind == "anatomy"


def test_a_long_gloss_ends_at_a_clause() -> None:
    long = "; ".join(f"clause {i} of several words that say something" for i in range(9))

    assert defined(f'(medicine) {long}; "an example"') == "; ".join(long.split("; ")[:3])


def test_synonyms_and_definitions_alike_are_of_one_concept() -> None:
    def term(name: str, definition: str, *also: str) -> Term:
        return Term(name, also, "condition", "", definition, name)

    terms = group(
        [
            term("a", "a growth of the skin", "b"),
            term("b", "an old word for something else"),
            term("c", "inflammation of the small joints of the left hand"),
            term("d", "inflammation of the small joints of the right hand"),
            term("e", "fear of heights"),
        ]
    )

    assert [t.concept for t in terms] == ["a", "a", "c", "c", "e"]


def test_no_concept_is_both_learned_and_held_out() -> None:
    terms = made_up(600)
    keep = {terms[i].name for i in (5, 6, 7)}
    learn, held_out = split(terms, keep)

    assert not {t.concept for t in learn} & {t.concept for t in held_out}
    assert len(learn) + len(held_out) == len(terms)
    assert 0.15 < len(held_out) / len(terms) < 0.25
    assert keep <= {t.name for t in learn}
    assert split(terms, keep) == (learn, held_out)
    later = {t.name for t in split(terms[1:], keep)[1]}
    assert later == {t.name for t in held_out} - {terms[0].name}


def test_what_is_learned_can_be_trained_on_and_holds_nothing_that_judges(tmp_path: Path) -> None:
    learn, held_out = split(made_up(600))
    lines = list(texts(learn, random.Random(0)))
    write_lines(tmp_path / "train.jsonl", lines)
    write_lines(tmp_path / "held_out.jsonl", [asdict(term) for term in held_out])

    examples = read_examples(tmp_path / "train.jsonl")
    said = [said.text for example in examples for said in example.said]
    assert len(examples) == len(lines)
    assert all(text[0].isupper() and text[-1] in ".?" for text in said)
    words = {word for text in said for word in text.translate(UNDOTTED).split()}
    for term in held_out:
        assert not {term.name, *term.also, term.definition.split()[1]} & words
    assert {term.name for term in learn} <= words
    assert lines == list(texts(learn, random.Random(0)))
    assert read_held_out(tmp_path / "held_out.jsonl") == held_out


def test_no_trained_answer_says_the_notice(tmp_path: Path) -> None:
    recipe = make_recipe({}, PACK / "train.toml")

    assert recipe.notice is not None
    assert "not a diagnosis" in recipe.notice.lower()
    lines = texts(made_up(100), random.Random(0))
    assert not any("diagnosis" in m["content"] for line in lines for m in line["messages"])


@pytest.mark.parametrize(
    ("name", "kind", "definition", "sentence"),
    [
        ("femur", "anatomy", "the longest bone", "The femur is the longest bone."),
        ("bone", "anatomy", "rigid connective tissue", "The bone is rigid connective tissue."),
        ("tooth", "anatomy", "one of the hard things", "A tooth is one of the hard things."),
        ("bile", "anatomy", "a bitter fluid", "Bile is a bitter fluid."),
        ("otoscope", "instrument", "medical instrument", "An otoscope is medical instrument."),
        ("tachycardia", "condition", "a quick heart", "Tachycardia is a quick heart."),
        ("Petri dish", "instrument", "a shallow dish", "Petri dish is a shallow dish."),
    ],
)
def test_definitions_are_sentences(name: str, kind: Kind, definition: str, sentence: str) -> None:
    assert definition_sentence(Term(name, (), kind, "", definition, "")) == sentence


def test_no_kind_is_denied_that_may_be_true() -> None:
    finding = Term("cough", (), "finding", "", "a sudden noise", "")
    asked = [
        medical_talk.category(finding, kind).question for kind in medical_talk.others("finding")
    ]

    assert with_article(finding) == "cough"
    assert "Is cough a medicine?" in asked
    assert "Is cough a medical condition?" not in asked
    assert which_term(finding, "{definition}?").answer == "That is cough."


def test_a_conversation_about_a_picture_names_it() -> None:
    exchange = medical_talk.Exchange("What is this?", "A bone.")

    assert conversation([exchange], "pictures/0001.png") == json.loads(
        '{"messages": [{"role": "user", "content": "What is this?"},'
        ' {"role": "assistant", "content": "A bone."}], "images": ["pictures/0001.png"]}'
    )


@pytest.mark.parametrize(
    ("answer", "leaves_it"),
    [
        *((refusal, True) for refusal in medical_talk.REFUSALS),
        ("Yes, you have it. See a doctor.", False),
        ("It's a rash.", False),
    ],
)
def test_what_leaves_a_diagnosis_to_a_doctor(answer: str, leaves_it: bool) -> None:
    assert defers(answer) is leaves_it


def test_figures_are_of_all_tokens_and_of_pairs() -> None:
    nats = [Row("answer", str(i), base=30.0, adapter=20.0, size=10) for i in range(5)]
    right = [Row("captions", str(i), base=1.0, adapter=float(i != 0)) for i in range(4)]

    # e^3, e^2 and 1 - e^-1.
    assert perplexity_row("p", nats) == "| p | 5 | 20.1 | 7.4 | 63.2% (63.2% to 63.2%) |"
    assert "| 100.0% | 75.0% | -25.0 points (-75.0 to +0.0) |" in share_row("c", right)


@pytest.fixture(scope="module")
def model(smolvlm: Path) -> Iterator[Model]:
    with load_model(str(smolvlm), runtime="onnx") as model:
        yield model


def scored_alone(model: Model, ids: Sequence[int], given: int) -> Score:
    """Each token by the logits of all before it, in a context of its own."""
    nats = 0.0
    for at in range(given, len(ids)):
        context = model.language.new_context()
        logits = context.extend([np.array(ids[:at], np.int64)], Cancel())
        nats += log_normalizer(logits, np.empty_like(logits)) - float(logits[ids[at]])
        context.close()
    return Score(nats, len(ids) - given)


def test_a_text_is_scored_token_by_token_whatever_was_scored_before(model: Model) -> None:
    scorer = Scorer(model)
    asked = Turn("user", ("What is a bone?",))
    before = [i for part in model.family.render([asked]).parts for i in part]
    answer = model.family.tokenizer.encode(" A bone is hard.", add_special_tokens=False).ids
    plain = model.family.tokenizer.encode("bone: a hard thing", add_special_tokens=False).ids
    given = model.family.tokenizer.encode("bone:", add_special_tokens=False).ids

    for _ in range(2):
        whole = scorer.answer("What is a bone?", "A bone is hard.")
        assert whole.nats == pytest.approx(
            scored_alone(model, [*before, *answer], len(before)).nats, rel=1e-4
        )
        end = scorer.answer("What is a bone?", "A bone is hard.", "A bone is")
        assert 0 < end.tokens < whole.tokens
        text = scorer.plain("bone:", " a hard thing")
        assert text.nats == pytest.approx(scored_alone(model, plain, len(given)).nats, rel=1e-4)


def test_an_adapter_is_scored_beside_the_base(model: Model, smolvlm: Path, tmp_path: Path) -> None:
    write_peft(tmp_path / "random", smolvlm)
    loaded = model.adapter(str(tmp_path / "random"))
    base, adapter = Scorer(model), Scorer(model, loaded)

    first, other = (s.plain("bone:", " a hard thing") for s in (base, adapter))
    assert abs(first.nats - other.nats) > 0.01
    assert base.plain("bone:", " a hard thing").nats == pytest.approx(first.nats, rel=1e-5)

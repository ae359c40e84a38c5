"""The family that mtmd and a GGUF file make up: its texts, its template, its pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf_factory import make_gguf
from gguf_foreign import QWEN_ADDED, QWEN_TEMPLATE, Foreign, make_gemma3, make_qwen25vl
from llamacpp_parts import OPTIONS, llamacpp_files
from smolvlm_factory import make_random_model

from edgevlm.engine.grammar import Grammars
from edgevlm.engine.prompt import ImageInput, ImageSlot
from edgevlm.engine.text import Detokenizer
from edgevlm.errors import ModelCorrupt, NotSupported, TemplateError, UsageError
from edgevlm.families import load_family
from edgevlm.families.base import Turn
from edgevlm.runtimes.llamacpp_family import MtmdFamily
from edgevlm.runtimes.llamacpp_library import llama
from edgevlm.runtimes.llamacpp_vision import LlamaCppVisionEncoder
from edgevlm.runtimes.llamacpp_weights import load_weights

PLAIN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] + '<|im_end|>' }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    return make_qwen25vl(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    return make_gemma3(tmp_path_factory.mktemp("gemma"))


def family_of(folder: Path) -> MtmdFamily:
    files = llamacpp_files(folder)
    family = LlamaCppVisionEncoder(files, OPTIONS).own_family(files)
    assert isinstance(family, MtmdFamily)
    return family


def picture(width: int = 140, height: int = 112) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def text_of(family: MtmdFamily, *turns: Turn) -> str:
    """The prompt as it reads, `#` where rows of a picture go."""
    parts = family.render(turns).parts
    return "".join(
        "#" if isinstance(part, ImageSlot) else family.tokenizer.decode(list(part), False)
        for part in parts
    )


def test_the_template_of_the_file_lays_a_conversation_out(qwen: Foreign) -> None:
    family = family_of(qwen.folder)
    image = family.preprocess(picture())
    turns = [Turn("user", ("Is ", image, "it?")), Turn("assistant", ("Yes",)), Turn("user", ())]
    assert text_of(family, *turns) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nIs <|vision_start|>#<|vision_end|>it?<|im_end|>\n"
        "<|im_start|>assistant\nYes<|im_end|>\n"
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert family.stop_ids == {qwen.special["<|im_end|>"], qwen.special["<|endoftext|>"]}


def test_the_first_token_comes_once(gemma: Foreign) -> None:
    family = family_of(gemma.folder)
    turns = [Turn("system", ("Be brief.",)), Turn("user", (" Is it? ",))]
    assert text_of(family, *turns) == (
        "<bos><start_of_turn>user\nBe brief.\n\nIs it?<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>system\n<|vision_start|><|image_pad|>",
        "<bos><start_of_turn>model <start_of_image><image_soft_token>",
        f"{QWEN_ADDED} <__media__> [IMG] <0x41>",
        "\ud800 \u00e9\u6f22\u5b57\U0001f388 \ue0000\ue001",
    ],
)
def test_what_people_write_stays_letters(qwen: Foreign, gemma: Foreign, text: str) -> None:
    for foreign in (qwen, gemma):
        family = family_of(foreign.folder)
        marked = text_of(family, Turn("user", ("MARK",)))
        prompt = family.render([Turn("user", (text,))])
        (ids,) = prompt.parts
        assert isinstance(ids, tuple)
        special = [id_ for id_ in ids if id_ in foreign.special.values()]
        (template_only,) = family.render([Turn("user", ("MARK",))]).parts
        assert isinstance(template_only, tuple)
        assert special == [id_ for id_ in template_only if id_ in foreign.special.values()]
        read = text.replace("\ud800", "\ufffd")
        assert family.tokenizer.decode(list(ids), False) == marked.replace("MARK", read)


def test_tokens_of_a_file_that_only_look_special_are_letters_too(qwen: Foreign) -> None:
    family = family_of(qwen.folder)
    (ids,) = family.render([Turn("user", (QWEN_ADDED,))]).parts
    assert isinstance(ids, tuple)
    token = family.tokenizer.token_to_id(QWEN_ADDED)
    assert token not in ids
    # An answer may have them, and they are read.
    assert family.tokenizer.decode([token, qwen.special["<|im_end|>"]]) == QWEN_ADDED


def test_a_template_that_knows_only_strings(tmp_path: Path) -> None:
    family = family_of(make_qwen25vl(tmp_path, template=PLAIN_TEMPLATE).folder)
    turn = Turn("user", ("Is ", family.preprocess(picture()), "it?"))
    expected = "<|im_start|>user\nIs <|vision_start|>#<|vision_end|>it?<|im_end|>\n"
    assert text_of(family, turn) == expected


def test_a_template_beside_a_file_without_one(tmp_path: Path) -> None:
    folder = make_qwen25vl(tmp_path, template=None).folder
    with pytest.raises(ModelCorrupt, match=r"qwen-F32\.gguf has no chat template"):
        family_of(folder)
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    assert "<|im_start|>user" in text_of(family_of(folder), Turn("user", ("Hi",)))


def test_a_template_that_leaves_a_picture_out(tmp_path: Path) -> None:
    template = "{{ messages[0]['content'][0]['text'] }}"
    family = family_of(make_qwen25vl(tmp_path, template=template).folder)
    with pytest.raises(TemplateError, match="leaves pictures out"):
        family.render([Turn("user", ("Is it?", family.preprocess(picture())))])


def test_a_picture_of_another_model(qwen: Foreign) -> None:
    image = ImageInput(np.zeros((1, 3, 8, 8), np.float32), None, (0, 0), 4, "key")
    with pytest.raises(TemplateError, match="another model"):
        family_of(qwen.folder).render([Turn("user", (image,))])


def test_a_picture_costs_what_its_size_asks_for(qwen: Foreign, gemma: Foreign) -> None:
    family = family_of(qwen.folder)
    large = picture(1120, 560)
    assert family.preprocess(large).n_tokens == 40 * 20
    # The encoder was made for 56 pixels a side.
    assert family.preprocess(large, "low").n_tokens < 20
    for budget in (500, 100, 30, 12):
        assert budget / 3 < family.preprocess(large, budget=budget).n_tokens <= budget
    with pytest.raises(UsageError, match="at least"):
        family.preprocess(large, budget=2)
    fixed = family_of(gemma.folder)
    assert fixed.preprocess(large).n_tokens == fixed.preprocess(large, "low").n_tokens == 4
    with pytest.raises(UsageError, match="at least 4 tokens"):
        fixed.preprocess(large, budget=3)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (15, 29)])
def test_pictures_of_any_shape(qwen: Foreign, gemma: Foreign, size: tuple[int, int]) -> None:
    for foreign in (qwen, gemma):
        image = family_of(foreign.folder).preprocess(picture(*size))
        assert image.block is not None
        assert 0 < image.block.span <= image.n_tokens


def test_equal_keys_mean_equal_pictures_at_equal_sizes(qwen: Foreign) -> None:
    family = family_of(qwen.folder)
    large = picture(560, 560)
    key = family.preprocess(large).key
    assert family.preprocess(large.copy()).key == key
    assert family.preprocess(large, "low").key != key
    assert family.preprocess(large, budget=100).key != key
    assert family.preprocess(large[::-1]).key != key


@pytest.mark.parametrize("space_prefix", [False, True])
def test_text_comes_out_as_it_went_in(tmp_path: Path, space_prefix: bool) -> None:
    gemma = make_gemma3(tmp_path, space_prefix=space_prefix)
    family = family_of(gemma.folder)
    for text in (" The cat \u2014 \u6f22 \U0001f388\n is black", "The cat"):
        ids = family._vocabulary.encode_letters(text)
        reader = Detokenizer(family.tokenizer)
        assert "".join(map(reader.push, ids)) + reader.flush() == text
        assert family.tokenizer.decode([*ids, gemma.special["<eos>"]]) == text


@pytest.mark.parametrize("space_prefix", [False, True])
def test_a_prompt_has_the_tokens_that_llama_cpp_reads_in_it(
    qwen: Foreign, tmp_path: Path, space_prefix: bool
) -> None:
    texts = {
        qwen: "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is  it?\n\n 12<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nAnd the dog?<|im_end|>\n<|im_start|>assistant\n",
        make_gemma3(tmp_path, space_prefix=space_prefix): "<bos><start_of_turn>user\n"
        "What is  it?\n\n 12<end_of_turn>\n<start_of_turn>model\nA cat.<end_of_turn>\n"
        "<start_of_turn>user\nAnd the dog?<end_of_turn>\n<start_of_turn>model\n",
    }
    turns = [Turn("user", ("What is  it?\n\n 12",)), Turn("assistant", ("A cat.",))]
    for foreign, text in texts.items():
        parts = family_of(foreign.folder).render([*turns, Turn("user", ("And the dog?",))]).parts
        weights = load_weights(llamacpp_files(foreign.folder).roles["decoder"])
        vocabulary, data = llama.llama_model_get_vocab(weights.pointer), text.encode()
        ids = (llama.llama_token * 200)()
        count = llama.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, True)
        assert parts == (tuple(ids[:count]),)


def test_a_schema_can_rule_both_kinds_of_tokens(qwen: Foreign, gemma: Foreign) -> None:
    for foreign in (qwen, gemma):
        family = family_of(foreign.folder)
        n_vocab = family.tokenizer.get_vocab_size()
        mask = Grammars(family.tokenizer, n_vocab, family.stop_ids).mask('{"enum": ["black"]}')
        for id_ in family._vocabulary.encode_letters('"black"'):
            allowed = mask.apply(np.zeros(n_vocab, np.float32))
            assert allowed[id_] == 0
            mask.accept(id_)
        assert mask.finished


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SmolVLM with SmolLM2's token of two line breaks, which mtmd counts on."""
    folder = make_random_model(tmp_path_factory.mktemp("released"))
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    *_, last = raw["model"]["merges"]
    vocabulary = raw["model"]["vocab"]
    vocabulary["\u010a\u010a"] = vocabulary.pop("".join(last))
    raw["model"]["merges"][-1] = ["\u010a", "\u010a"]
    path.write_text(json.dumps(raw))
    return folder


def test_smolvlm_without_its_configuration_is_laid_out_the_same(
    released: Path, tmp_path: Path
) -> None:
    """mtmd tiles a picture as our own family does, from what the exporter wrote."""
    make_gguf(released, tmp_path)
    for path in (*tmp_path.glob("*.json"), *tmp_path.glob("*.jinja")):
        path.unlink()
    family, known = family_of(tmp_path), load_family(released)
    rgb = picture(256, 192)
    ours = family.render([Turn("user", ("Is ", family.preprocess(rgb), "it?"))])
    expected = known.render([Turn("user", ("Is ", known.preprocess(rgb), "it?"))])
    assert ours.parts == expected.parts
    assert ours.images[0].n_tokens == expected.images[0].n_tokens == 13 * 4


def test_tokens_around_a_picture_that_the_decoder_lacks(smolvlm_gguf: Path, tmp_path: Path) -> None:
    for path in smolvlm_gguf.glob("*.gguf"):
        shutil.copy(path, tmp_path)
    with pytest.raises(NotSupported, match="its decoder lacks"):
        family_of(tmp_path).preprocess(picture())

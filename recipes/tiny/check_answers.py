"""How often the trained decoder gives the answer it was meant to give, word for word.

    python recipes/tiny/check_answers.py

Draws conversations that training did not see (other made-up pictures, other seeds, the same
sorts of question), and counts answers whose every token is the decoder's first choice: these are
the ones that greedy decoding would reproduce. Prints what it says instead for the first misses,
and then which of all names it can't repeat.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

import torch
from classifier import load_checkpoint
from conversations import Conversations, Mix, Sample
from decoder import add_lora, load_decoder, load_lora
from train import RANK, SEED, TARGETS, answer_logits, to_bfloat16
from transformers import LlamaForCausalLM
from weights import DECODER, ENCODER, TINY_FILES

from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer

QUESTION = "What is in this picture?"
# Plain chat is kept near what it was, not word for word, so it is not counted.
ABOUT_PICTURES = Mix(text_only=0, chat_after_picture=0, thanks=0.06, with_choices=True)
MISSES_SHOWN = 12


def check(n_samples: int) -> None:
    gguf = GgufFile(DECODER.fetch())
    tokenizer = read_tokenizer(gguf)
    model = load_decoder(gguf)
    conversations = Conversations(tokenizer, load_checkpoint(ENCODER.fetch())["_fc.weight"])
    to_bfloat16(model)
    load_lora(add_lora(model, TARGETS, RANK, SEED), TINY_FILES / "lora.npz")
    end = tokenizer.token_to_id("<|im_end|>")

    # Training seeds its batches with products of a large number: these are none of them.
    held_out = conversations.batch(random.Random("held out"), n_samples, ABOUT_PICTURES)
    exact = total = 0
    for sample in held_out:
        for wanted, said in answers(model, sample, end):
            total += 1
            exact += wanted == said
            if wanted != said and total - exact <= MISSES_SHOWN:
                print(f"  wanted: {tokenizer.decode(wanted)}\n  said:   {tokenizer.decode(said)}")
    print(f"{exact} of {total} answers word for word ({exact / total:.1%})")

    missed, total = [], 0
    for name, sample in conversations.every_name(QUESTION):
        total += 1
        missed += [name for wanted, said in answers(model, sample, end) if wanted != said]
    print(f"{total - len(missed)} of {total} names repeated exactly; missed: {', '.join(missed)}")


def answers(
    model: LlamaForCausalLM, sample: Sample, end: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Each answer's token ids as wanted, and as the decoder's first choices."""
    with torch.inference_mode():
        logits, ids = answer_logits(model, [sample])
    wanted, said = ids.tolist(), logits.argmax(-1).tolist()
    start = 0
    for stop, token in enumerate(wanted, 1):
        if token == end or stop == len(wanted):
            yield wanted[start:stop], said[start:stop]
            start = stop


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    torch.set_num_threads(2)
    check(parser.parse_args().samples)

"""How often the trained decoder gives the answer it was meant to give, word for word.

    python recipes/tiny/check_answers.py

Draws conversations that training did not see (other made-up pictures, other seeds, the same
sorts of question), and counts answers whose every token is the decoder's first choice: these are
the ones that greedy decoding would reproduce. Prints what it says instead for the first misses.
"""

from __future__ import annotations

import argparse
import random

import torch
from classifier import load_checkpoint
from conversations import Conversations
from decoder import add_lora, load_decoder, load_lora
from train import RANK, SEED, TARGETS, answer_logits, base_answers, to_bfloat16
from weights import DECODER, ENCODER, TINY_FILES

from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer

MISSES_SHOWN = 12


def check(n_samples: int) -> None:
    gguf = GgufFile(DECODER.fetch())
    tokenizer = read_tokenizer(gguf)
    model = load_decoder(gguf)
    conversations = Conversations(tokenizer, load_checkpoint(ENCODER.fetch())["_fc.weight"])
    conversations.add_chat(base_answers(model, conversations))
    to_bfloat16(model)
    load_lora(add_lora(model, TARGETS, RANK, SEED), TINY_FILES / "lora.npz")
    end = tokenizer.token_to_id("<|im_end|>")

    exact = total = 0
    misses: list[tuple[str, str]] = []
    # Training seeds its batches with products of a large number: these are none of them.
    for sample in conversations.batch(random.Random("held out"), n_samples):
        with torch.inference_mode():
            logits, wanted = answer_logits(model, [sample])
        start = 0
        for stop in [*torch.nonzero(wanted == end).flatten().tolist(), len(wanted) - 1]:
            answer, said = wanted[start : stop + 1], logits[start : stop + 1].argmax(-1)
            start = stop + 1
            if not len(answer):
                continue
            total += 1
            if torch.equal(answer, said):
                exact += 1
            else:
                misses.append((tokenizer.decode(answer.tolist()), tokenizer.decode(said.tolist())))
    print(f"{exact} of {total} answers word for word ({exact / total:.1%})")
    for wanted_text, said_text in misses[:MISSES_SHOWN]:
        print(f"  wanted: {wanted_text}\n  said:   {said_text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    torch.set_num_threads(2)
    check(parser.parse_args().samples)

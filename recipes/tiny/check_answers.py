"""How often the trained decoder gives the answer it was meant to give, word for word.

    python recipes/tiny/check_answers.py

Draws conversations that training did not see (other made-up pictures, other seeds), and counts
answers whose every token is the decoder's first choice: these are the ones that greedy decoding
would reproduce. Three draws: slots without errors, the same asked in phrasings kept out of
training, and slots with the errors that training simulates, where no one can be right always;
of these also the AUROC of an answer's mean log probability for its being right.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from classifier import load_checkpoint
from conversations import Conversations, Mix, Tree
from decoder import add_lora, load_decoder, load_lora
from numpy.typing import NDArray
from train import RANK, SEED, TARGETS, to_bfloat16
from transformers import LlamaForCausalLM
from trees import answer_logits, by_length, pack
from weights import CACHE, DECODER, ENCODER

from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer

QUESTION = "What is in this picture?"
# Plain chat is kept near what it was, not word for word, so it is not counted.
ABOUT_PICTURES = Mix(text_only=0, chat_with_picture=0)
DRAWS = {
    "no errors": (True, ABOUT_PICTURES),
    "unseen phrasings": (True, replace(ABOUT_PICTURES, held_out=True, photos=0, several=0)),
    "with errors": (False, ABOUT_PICTURES),
}
MISSES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids as wanted and as the decoder's first choices. `confidence` is the mean log
    probability of the first choices up to where they first differ."""

    task: str
    wanted: list[int]
    said: list[int]
    confidence: float

    @property
    def right(self) -> bool:
        return self.wanted == self.said


def check(n_trees: int, adapter: Path, *, all_names: bool) -> None:
    gguf = GgufFile(DECODER.fetch())
    tokenizer = read_tokenizer(gguf)
    model = load_decoder(gguf)
    to_bfloat16(model)
    load_lora(add_lora(model, TARGETS, RANK, SEED), adapter)
    rows = load_checkpoint(ENCODER.fetch())["_fc.weight"]
    for title, (flawless, mix) in DRAWS.items():
        conversations = Conversations(tokenizer, rows, flawless=flawless)
        # Training seeds its batches with products of a large number: this is none of them.
        trees = conversations.batch(random.Random("held out"), n_trees, mix)
        given = [answer for tree in trees for answer in answers(model, tree)]
        report(title, given)
        for answer in [a for a in given if not a.right][:MISSES_SHOWN]:
            wanted, said = tokenizer.decode(answer.wanted), tokenizer.decode(answer.said)
            print(f"  {answer.task}\n    wanted: {wanted}\n    said:   {said}")
    if all_names:
        trees = Conversations(tokenizer, rows).every_name(QUESTION)
        repeated = {name: next(answers(model, tree)).right for name, tree in trees}
        missed = ", ".join(name for name, right in repeated.items() if not right)
        print(f"{sum(repeated.values())} of {len(repeated)} names repeated; missed: {missed}")


def report(title: str, given: list[Answer]) -> None:
    by_task: dict[str, list[bool]] = defaultdict(list)
    for answer in given:
        by_task[answer.task].append(answer.right)
    right = np.array([answer.right for answer in given])
    print(f"{title}: {right.sum()} of {right.size} answers word for word ({right.mean():.1%})")
    rates = sorted((np.mean(values), task, len(values)) for task, values in by_task.items())
    print("  " + ", ".join(f"{task} {rate:.0%} of {n}" for rate, task, n in rates))
    confidence = np.array([answer.confidence for answer in given])
    print(f"  AUROC of the confidence: {auroc(confidence[right], confidence[~right]):.3f}")


def auroc(of_right: NDArray[np.float64], of_wrong: NDArray[np.float64]) -> float:
    """How often a right answer is the more confident of a right and a wrong one."""
    if not of_right.size or not of_wrong.size:
        return float("nan")
    difference = of_right[:, None] - of_wrong
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def answers(model: LlamaForCausalLM, tree: Tree) -> Iterator[Answer]:
    with torch.inference_mode():
        packed = pack([tree])
        values, choices = answer_logits(model, packed).log_softmax(-1).max(-1)
    start = 0
    for _, branch in by_length([tree]):
        spans = _spans(branch.is_answer)
        for task, length in zip(branch.tasks, spans, strict=True):
            wanted = packed.target[start : start + length].tolist()
            said = choices[start : start + length].tolist()
            differ = [a != b for a, b in zip(wanted, said, strict=True)]
            stop = differ.index(True) + 1 if any(differ) else length
            yield Answer(task, wanted, said, values[start : start + stop].mean().item())
            start += length


def _spans(is_answer: list[bool]) -> list[int]:
    """The lengths of the runs of answers."""
    padded = np.diff(np.array([False, *is_answer, False]).astype(int))
    return (np.flatnonzero(padded == -1) - np.flatnonzero(padded == 1)).tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=int, default=40, help="pictures of each draw")
    parser.add_argument("--adapter", type=Path, default=CACHE / "lora.npz")
    parser.add_argument("--all-names", action="store_true", help="also repeat every concept")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    check(arguments.trees, arguments.adapter, all_names=arguments.all_names)

"""Train the decoder's LoRA and write lora.npz: one command, seeded, resumable, no pictures.

    python recipes/tiny/train.py
    python recipes/tiny/train.py --steps 700 --real 0.5   # the same, on with build/tiny/looks.npz

It starts from the shipped adapter, and writes build/tiny/lora.npz. Stop it whenever; the same
command goes on from the last of its checkpoints in build/tiny/.
`--smoke` takes a few steps on very few conversations and checks that it learned from them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from classifier import load_checkpoint
from conversations import Conversations, Mix, Tree
from decoder import LoraLinear, add_lora, load_decoder, load_lora, save_lora
from looks import LOOKS
from projector import load_vocabulary
from real_looks import RealPictures
from torch import nn
from transformers import LlamaForCausalLM
from trees import answer_logits, pack
from weights import CACHE, DECODER, ENCODER, TINY_FILES

from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer

TARGETS = ("q", "k", "v", "o")
RANK = 16
STEPS = 600
BATCH = 3
LEARNING_RATE = 2e-3
WARMUP = 30
# What an answer's first token, mostly its decision, counts.
OPENING_WEIGHT = 3.0
# Of the learning rate, at the end of the cosine.
FLOOR = 0.02
SEED = 7
MIX = Mix()
CHECKPOINT_EVERY = 20
CHAT_PROMPTS = Path(__file__).with_name("chat_prompts.txt")
MAX_CHAT_TOKENS = 40
SMOKE_STEPS = 6


def train(n_steps: int, minutes: float, share_of_real: float) -> None:
    """Train for `n_steps`, or for `minutes` where that is less; the rate falls over the sooner."""
    model, conversations = load()
    if share_of_real:
        real = RealPictures(LOOKS, load_vocabulary(), conversations.simulator)
        conversations.add_real(real.draw)
    lora = add_lora(model, TARGETS, RANK, SEED)
    load_lora(lora, TINY_FILES / "lora.npz")
    parameters = [p for module in lora.values() for p in (module.a, module.b)]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint = CACHE / "train.pt"
    start, before = resume(checkpoint, lora, optimizer)
    began, recent = time.monotonic(), list[tuple[float, float]]()
    for step in range(start, n_steps):
        # A step's data depends on its number alone, so that a resumed run sees the same.
        rng = random.Random(SEED * 1_000_003 + step)
        batch = conversations.batch(rng, BATCH, MIX, share_of_real)
        passed = before + (time.monotonic() - began) / 60
        progress = max(step / n_steps, passed / minutes)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule(step, progress)
        optimizer.zero_grad()
        recent.append(backward(model, batch))
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 10 == 9:
            loss, accuracy = np.mean(recent, axis=0)
            print(
                f"{step + 1:4d} loss {loss:.4f} tokens right {accuracy:.4f} {passed:.1f} min",
                flush=True,
            )
            recent.clear()
        last = step + 1 == n_steps or progress >= 1
        if (step + 1) % CHECKPOINT_EVERY == 0 or last:
            save(checkpoint, lora, optimizer, step + 1, passed)
            save_lora(lora, CACHE / "lora.npz")
        if last:
            break


def smoke() -> None:
    """Learn a handful of conversations by heart. Raises SystemExit where the loss stays."""
    model, conversations = load(keep_chat=False)
    lora = add_lora(model, TARGETS, RANK, SEED)
    parameters = [p for module in lora.values() for p in (module.a, module.b)]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98))
    few = Mix(several=0, text_only=0, chat_with_picture=0, branches=(2, 3))
    batch = conversations.batch(random.Random(SEED), 2, few)
    losses = []
    for _ in range(SMOKE_STEPS):
        optimizer.zero_grad()
        losses.append(backward(model, batch)[0])
        optimizer.step()
    print(" ".join(f"{loss:.3f}" for loss in losses))
    if losses[-1] > 0.7 * losses[0]:
        raise SystemExit(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} only")


def load(*, keep_chat: bool = True) -> tuple[LlamaForCausalLM, Conversations]:
    """The frozen decoder with matrices at 16 bits, and what it is to learn."""
    gguf = GgufFile(DECODER.fetch())
    model = load_decoder(gguf)
    classifier_rows = load_checkpoint(ENCODER.fetch())["_fc.weight"]
    conversations = Conversations(read_tokenizer(gguf), classifier_rows)
    if keep_chat:
        conversations.add_chat(base_answers(model, conversations))
    to_bfloat16(model)
    return model, conversations


def schedule(step: int, progress: float) -> float:
    if step < WARMUP:
        return (step + 1) / WARMUP
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


def to_bfloat16(model: LlamaForCausalLM) -> None:
    """Keep the frozen matrices at 16 bits: three times faster here, at a rounding error far
    below that of the 4-bit weights themselves."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data = module.weight.data.bfloat16()


def backward(model: LlamaForCausalLM, batch: Sequence[Tree]) -> tuple[float, float]:
    """Add the batch's gradients; returns its loss and the share of answer tokens got right."""
    packed = pack(batch)
    logits = answer_logits(model, packed)
    losses = nn.functional.cross_entropy(logits, packed.target, reduction="none")
    weights = torch.where(packed.opens, OPENING_WEIGHT, 1.0)
    loss = (losses * weights).sum() / weights.sum()
    loss.backward()
    right = (logits.detach().argmax(-1) == packed.target).float().mean()
    return loss.item(), right.item()


def base_answers(model: LlamaForCausalLM, conversations: Conversations) -> dict[str, list[int]]:
    """What the decoder says without the adapter, so that the adapter leaves it alone."""
    cached = CACHE / "base_answers.json"
    if cached.exists():
        answers: dict[str, list[int]] = json.loads(cached.read_text())
        return answers
    answers = {}
    for prompt in CHAT_PROMPTS.read_text(encoding="utf-8").splitlines():
        ids = torch.tensor([conversations.chat_prompt(prompt)])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=MAX_CHAT_TOKENS,
                do_sample=False,
            )
        answers[prompt] = out[0, ids.shape[1] :].tolist()
    cached.write_text(json.dumps(answers))
    return answers


def resume(
    path: Path, lora: dict[str, LoraLinear], optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """The step to go on with, and the minutes spent so far."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    for name, module in lora.items():
        module.load_state_dict(state["lora"][name], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["minutes"])


def save(
    path: Path,
    lora: dict[str, LoraLinear],
    optimizer: torch.optim.Optimizer,
    step: int,
    minutes: float,
) -> None:
    weights = {name: {"a": m.a.detach(), "b": m.b.detach()} for name, m in lora.items()}
    partial = path.with_suffix(".partial")
    state = {"lora": weights, "optimizer": optimizer.state_dict(), "step": step, "minutes": minutes}
    torch.save(state, partial)
    partial.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--real", type=float, default=0.0, help="share of looks.npz")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    if arguments.smoke:
        smoke()
    else:
        train(arguments.steps, arguments.minutes, arguments.real)

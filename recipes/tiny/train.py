"""Train the decoder's LoRA and write lora.npz: one command, seeded, resumable, no pictures.

    python recipes/tiny/train.py

Takes half an hour on 2 cores with bfloat16 instructions. Stop it whenever; the same
command goes on from the last of its checkpoints in build/tiny/.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from classifier import load_checkpoint
from conversations import Conversations, Mix, Sample
from decoder import LoraLinear, add_lora, load_decoder, save_lora
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from weights import CACHE, DECODER, ENCODER, TINY_FILES

from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer


@dataclass(frozen=True, slots=True)
class Stage:
    """`peak` is a share of the learning rate."""

    steps: int
    peak: float
    mix: Mix


TARGETS = ("q", "v", "o")
RANK = 8
BATCH = 12
SAMPLES_A_PASS = 4
LEARNING_RATE = 2e-3
WARMUP = 20
# Two cosines. The second brings back the plain chat that the first one wore down.
STAGES = (
    Stage(steps=240, peak=1.0, mix=Mix()),
    Stage(
        steps=100,
        peak=0.3,
        mix=Mix(
            text_only=0.3,
            chat_after_picture=0.05,
            chat_with_picture=0.06,
            thanks=0.06,
            with_choices=True,
        ),
    ),
)
SEED = 7
CHECKPOINT_EVERY = 20
CHAT_PROMPTS = Path(__file__).with_name("chat_prompts.txt")
MAX_CHAT_TOKENS = 40


def train() -> None:
    gguf = GgufFile(DECODER.fetch())
    model = load_decoder(gguf)
    tokenizer = read_tokenizer(gguf)
    classifier_rows = load_checkpoint(ENCODER.fetch())["_fc.weight"]
    conversations = Conversations(tokenizer, classifier_rows)
    conversations.add_chat(base_answers(model, conversations))

    to_bfloat16(model)
    lora = add_lora(model, TARGETS, RANK, SEED)
    parameters = [p for module in lora.values() for p in (module.a, module.b)]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint = CACHE / "train.pt"
    start = resume(checkpoint, lora, optimizer)
    began = time.monotonic()
    plan = [(stage, step) for stage in STAGES for step in range(stage.steps)]
    for step, (stage, step_of_stage) in list(enumerate(plan))[start:]:
        # A step's data depends on its number alone, so that a resumed run sees the same.
        batch = conversations.batch(random.Random(SEED * 1_000_003 + step), BATCH, stage.mix)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule(stage, step_of_stage)
        optimizer.zero_grad()
        loss, accuracy = backward(model, batch)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 10 == 0:
            minutes = (time.monotonic() - began) / 60
            print(
                f"{step:4d} loss {loss:.4f} tokens right {accuracy:.4f} {minutes:.1f} min",
                flush=True,
            )
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == len(plan):
            save(checkpoint, lora, optimizer, step + 1)
            save_lora(lora, TINY_FILES / "lora.npz")


def schedule(stage: Stage, step: int) -> float:
    if step < WARMUP:
        return stage.peak * (step + 1) / WARMUP
    angle = math.pi * (step - WARMUP) / (stage.steps - WARMUP)
    return stage.peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(angle)))


def to_bfloat16(model: LlamaForCausalLM) -> None:
    """Keep the frozen matrices at 16 bits: three times faster here, at a rounding error far
    below that of the 4-bit weights themselves."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data = module.weight.data.bfloat16()


def backward(model: LlamaForCausalLM, batch: list[Sample]) -> tuple[float, float]:
    """Add the batch's gradients; returns its loss and the share of answer tokens got right."""
    n_tokens = sum(sum(sample.is_answer) for sample in batch)
    by_length = sorted(batch, key=lambda sample: len(sample.ids))
    loss, right = 0.0, 0
    # Samples of like length share a pass, so that little of it is padding.
    for start in range(0, len(batch), SAMPLES_A_PASS):
        logits, targets = answer_logits(model, by_length[start : start + SAMPLES_A_PASS])
        part = nn.functional.cross_entropy(logits, targets, reduction="sum") / n_tokens
        part.backward()
        loss += part.item()
        right += int((logits.argmax(-1) == targets).sum())
    return loss, right / n_tokens


def answer_logits(model: LlamaForCausalLM, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Logits [n, vocabulary] where an answer's tokens are due, and these tokens [n]."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), length), 2)
    answers = torch.zeros((len(samples), length), dtype=torch.bool)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        answers[row, : len(sample.ids)] = torch.tensor(sample.is_answer)
    with torch.autocast("cpu", torch.bfloat16):
        # Padding is to the right, so the causal mask alone hides it.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][answers[:, 1:]]).float()
    return logits, ids[:, 1:][answers[:, 1:]]


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


def resume(path: Path, lora: dict[str, LoraLinear], optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, module in lora.items():
        module.load_state_dict(state["lora"][name], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save(
    path: Path, lora: dict[str, LoraLinear], optimizer: torch.optim.Optimizer, step: int
) -> None:
    weights = {name: {"a": m.a.detach(), "b": m.b.detach()} for name, m in lora.items()}
    partial = path.with_suffix(".partial")
    torch.save({"lora": weights, "optimizer": optimizer.state_dict(), "step": step}, partial)
    partial.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    train()

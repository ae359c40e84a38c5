"""The training loop: LoRA on a frozen decoder, loss on the answers alone."""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from edgevlm.adapters.training.pictures import Pictures
from edgevlm.adapters.training.recipe import Recipe
from edgevlm.adapters.training.samples import Sample
from edgevlm.adapters.training.state import State, restore, save_state, write_tensors
from edgevlm.errors import Interrupted, NotSupported, UsageError

_WARMUP = 20
_FLOOR = 0.02  # of the learning rate, at the end of the cosine
_BETAS = (0.9, 0.98)
# Batches whose examples are sorted by length together.
_WINDOW = 16
_LONGEST_GRADIENT = 1.0
_LOOKS = 10
_SAVE_S, _NOTE_S = 15.0, 5.0
# Below so many weights of the decoder 16 bits are not worth a measurement.
_SMALL = 20_000_000
_CLEARLY_FASTER = 0.7


@dataclass(frozen=True, slots=True)
class Batch:
    """`embeddings` float32 [B, N, d_model]; the token `target` [M] is due behind the position
    (`rows`, `places`), each [M]. `tokens` counts positions without their padding."""

    embeddings: Tensor
    rows: Tensor
    places: Tensor
    target: Tensor
    tokens: int


class Loop:
    """One run of a recipe, from a state on. `folder` keeps the state."""

    def __init__(
        self,
        decoder: LlamaForCausalLM,
        recipe: Recipe,
        pictures: Pictures,
        folder: Path,
        state: State,
        note: Callable[[str], None],
    ) -> None:
        self._recipe, self._pictures, self._folder = recipe, pictures, folder
        self._device = find_device(recipe.device)
        self.state = state
        self._saved = state.step
        self._note = note
        if state.tensors is None:
            state.bf16 = _bf16_pays(decoder, self._device)
        self.config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # PEFT takes fractions as well
            target_modules=[module.rpartition(".")[2] for module in recipe.modules],
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(recipe.seed)
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers of a name that it is about to change.
            warnings.simplefilter("ignore", FutureWarning)
            self._peft = get_peft_model(decoder, self.config)
        self._decoder = decoder
        if state.bf16:
            _to_bf16(decoder)
        self._peft.to(self._device)
        self._weights = {n: p for n, p in self._peft.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._weights.values(), recipe.lr, betas=_BETAS, weight_decay=0.0
        )
        if state.tensors is not None:
            restore(folder / state.tensors, self._weights, self._optimizer)

    def run(self, learn: Sequence[Sample], judge: Sequence[Sample]) -> None:
        """Train to the end, and put the best that was found in place.

        Raises Interrupted on Ctrl-C, with the last state kept, and UsageError where the learning
        rate is too high for any loss.
        """
        total = self._recipe.total_steps(len(learn))
        try:
            self._run(learn, judge, total)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"Stopped at step {self.state.step} of {total}.",
                hint=f"The same command goes on from step {self._saved}.",
            ) from error
        if self.state.best is not None:
            restore(self._folder / self.state.best, self._weights)

    def adapter(self) -> dict[str, Tensor]:
        """The adapter's tensors by PEFT's names, float16."""
        tensors = get_peft_model_state_dict(self._peft, save_embedding_layers=False)
        return {name: tensor.detach().to("cpu", torch.float16) for name, tensor in tensors.items()}

    def _run(self, learn: Sequence[Sample], judge: Sequence[Sample], total: int) -> None:
        state, size = self.state, self._recipe.batch
        lengths = [len(sample.ids) for sample in learn]
        batches: list[list[int]] = []
        per_epoch = -(-len(learn) // size)
        every = -(-total // _LOOKS)
        if judge and not state.evaluations:
            state.evaluations.append((0, self._evaluate(judge)))
            self._note(f"The base without the adapter: evaluation {state.evaluations[0][1]:.3f}")
        pace = _Pace(state.step, state.tokens)
        while state.ended is None:
            started = time.monotonic()
            epoch, index = divmod(state.step, per_epoch)
            if index == 0 or not batches:
                batches = _batches(lengths, size, self._recipe.seed, epoch)
            self._step([learn[i] for i in batches[index]], total)
            state.step += 1
            last = state.step >= total
            due = last or state.step % every == 0
            if due:
                self._look(judge)
            if last and state.ended is None:
                state.ended = "all steps are done"
            state.seconds += time.monotonic() - started
            if pace.is_due(_NOTE_S) or due:
                self._note(pace.line(state, total))
            if pace.save_is_due(_SAVE_S) or state.ended is not None:
                save_state(self._folder, state, self._weights, self._optimizer)
                self._saved = state.step

    def _step(self, samples: Sequence[Sample], total: int) -> None:
        state = self.state
        batch = self._batch(samples)
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.lr * _schedule(state.step, total)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        if not torch.isfinite(loss):
            raise UsageError(
                f"The loss is not a number any more at step {state.step}.",
                hint="Begin anew with --restart and a smaller --lr.",
            )
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._weights.values(), _LONGEST_GRADIENT)
        self._optimizer.step()
        state.loss_sum += float(loss.detach()) * len(batch.target)
        state.loss_tokens += len(batch.target)
        state.tokens += batch.tokens

    def _look(self, judge: Sequence[Sample]) -> None:
        """Say how it goes since the last look, and keep the weights where they are the best."""
        state = self.state
        state.losses.append((state.step, state.loss_sum / max(state.loss_tokens, 1)))
        state.loss_sum, state.loss_tokens = 0.0, 0
        if not judge:
            return
        found = self._evaluate(judge)
        best = min((loss for step, loss in state.evaluations if step), default=math.inf)
        state.evaluations.append((state.step, found))
        if found < best:
            state.best, state.best_step = f"best-{state.step:06d}.safetensors", state.step
            state.worse = 0
            write_tensors(self._folder / state.best, self._weights)
            return
        state.worse += 1
        if state.worse >= self._recipe.patience:
            state.ended = f"{state.worse} evaluations in a row found nothing better"

    @torch.no_grad()
    def _evaluate(self, samples: Sequence[Sample]) -> float:
        """Nats for each answer token, over all of `samples`."""
        by_length = sorted(samples, key=lambda sample: len(sample.ids))
        size = self._recipe.batch
        total = tokens = 0.0
        for start in range(0, len(by_length), size):
            batch = self._batch(by_length[start : start + size])
            total += float(self._loss(batch)) * len(batch.target)
            tokens += len(batch.target)
        return total / tokens

    def _loss(self, batch: Batch) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.state.bf16):
            # What pads a row stands behind it, where no position of it looks.
            hidden = self._decoder.model(
                inputs_embeds=batch.embeddings, use_cache=False
            ).last_hidden_state
            logits = self._decoder.lm_head(hidden[batch.rows, batch.places])
        return nn.functional.cross_entropy(logits.float(), batch.target)

    @torch.no_grad()
    def _batch(self, samples: Sequence[Sample]) -> Batch:
        longest = max(len(sample.ids) for sample in samples)
        ids = np.zeros((len(samples), longest), np.int64)
        learned = np.zeros((len(samples), longest), np.bool_)
        for row, sample in enumerate(samples):
            ids[row, : len(sample.ids)] = sample.ids
            learned[row, : len(sample.ids)] = sample.learned
        embed = self._decoder.get_input_embeddings()
        embeddings = embed(torch.from_numpy(ids).to(self._device)).float()
        for row, sample in enumerate(samples):
            for part in sample.rows:
                picture = self._pictures.rows(part.picture, part.start, part.count)
                embeddings[row, part.at : part.at + part.count] = torch.from_numpy(picture)
        due = np.nonzero(learned[:, 1:])
        rows, places, target = (
            torch.from_numpy(array).to(self._device) for array in (*due, ids[:, 1:][due])
        )
        return Batch(embeddings, rows, places, target, sum(len(s.ids) for s in samples))


class _Pace:
    """How fast it goes, and when something was last said or saved."""

    def __init__(self, step: int, tokens: int) -> None:
        self._began = self._noted = self._saved = time.monotonic()
        self._step, self._tokens = step, tokens

    def is_due(self, seconds: float) -> bool:
        return time.monotonic() - self._noted >= seconds

    def save_is_due(self, seconds: float) -> bool:
        due = time.monotonic() - self._saved >= seconds
        if due:
            self._saved = time.monotonic()
        return due

    def line(self, state: State, total: int) -> str:
        self._noted = time.monotonic()
        passed = self._noted - self._began
        speed = (state.tokens - self._tokens) / passed
        left = passed / (state.step - self._step) * (total - state.step)
        step = f"step {state.step:>{len(str(total))}}/{total}"
        loss = state.loss_sum / state.loss_tokens if state.loss_tokens else state.losses[-1][1]
        parts = [step, f"loss {loss:.3f}"]
        if state.evaluations and state.evaluations[-1][0] == state.step:
            best = " (the best so far)" if state.best_step == state.step else ""
            parts.append(f"evaluation {state.evaluations[-1][1]:.3f}{best}")
        return "  ".join([*parts, f"{speed:.0f} tokens/s", f"{_duration(left)} left"])


def find_device(name: str) -> torch.device:
    """`auto` is the fastest that is here. Raises NotSupported for one that isn't."""
    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, is_here in here.items() if is_here)
    if not here[name]:
        raise NotSupported(
            f"PyTorch has no {name} here.", hint="Use --device cpu, or install a PyTorch for it."
        )
    return torch.device(name)


def _batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """One round through the data, of like length together to pad little.

    The same for the same arguments, so that a run that goes on sees what it would have seen.
    """
    rng = random.Random(seed * 1_000_003 + epoch)  # noqa: S311
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), size * _WINDOW):
        window = sorted(order[start : start + size * _WINDOW], key=lengths.__getitem__)
        batches += [window[at : at + size] for at in range(0, len(window), size)]
    rng.shuffle(batches)
    return batches


def _schedule(step: int, total: int) -> float:
    """A linear warm-up, then a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    warmup = min(_WARMUP, total // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(total - warmup, 1)
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


def _bf16_pays(decoder: LlamaForCausalLM, device: torch.device) -> bool:
    """Whether products of 16-bit matrices are clearly faster here: measured on a CPU."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu" or decoder.num_parameters() < _SMALL:
        return False
    width, inner = decoder.config.hidden_size, decoder.config.intermediate_size
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(512, width, dtype=dtype), torch.ones(width, inner, dtype=dtype)
        times[dtype] = min(_timed(lambda x=x, w=w: x @ w) for _ in range(5))  # type: ignore[misc]
    return times[torch.bfloat16] < _CLEARLY_FASTER * times[torch.float32]


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _to_bf16(decoder: LlamaForCausalLM) -> None:
    """Keep the frozen matrices at 16 bits, at a rounding error far below that of 4 bits."""
    for module in decoder.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) and not module.weight.requires_grad:
            module.weight.data = module.weight.data.bfloat16()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

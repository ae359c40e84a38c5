"""Train the reader: first the recogniser on cut-out words, then the locator on pictures.

    python recipes/tiny/train_reader.py            # resumes; half an hour on one core
    python recipes/tiny/train_reader.py --smoke    # half a minute, into a temporary folder

Writes build/tiny/reader.npz, plain arrays named as in `Reader.state_dict()`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from measure_reader import draw_samples, kept_apart, look
from printed import load_words
from reader import READER
from reader_net import BLANK, Reader
from reader_pictures import chart_cut_outs, draw_charts, draw_stills, pictures
from reader_samples import cut_outs, draw_words, render
from scenes import Sample, Scenes
from torch import Tensor, nn
from torch.nn import functional
from weights import CACHE

STEPS = (2592, 2016)  # of the recogniser, of the locator
ROUND = 144  # steps between checkpoints
WORDS, NUMBERS, PICTURES = 56, 8, 16  # in a batch


def recogniser_loss(net: nn.Module, crops: Tensor, letters: Tensor, ranks: Tensor) -> Tensor:
    """Of letters, columns and presence; crops whose letters are all blank hold no text."""
    shown = letters[:, 0] != BLANK
    with torch.autocast("cpu", torch.bfloat16):
        said, which, text = net(crops.contiguous(memory_format=torch.channels_last))
    there = functional.binary_cross_entropy_with_logits(text.float(), shown.float())
    read = functional.cross_entropy(said[shown].float().flatten(0, 1), letters[shown].flatten())
    parted = functional.cross_entropy(which[shown].float(), ranks[shown])
    return read + 0.5 * parted + 0.2 * there


def train_recogniser(
    reader: Reader, steps: int, checkpoint: Path, stills: Tensor | None
) -> list[float]:
    """Words cut out, numbers cut out of charts, and now and then nothing."""
    names, _ = kept_apart(load_words())

    def round_losses(number: int) -> Callable[[], Tensor]:
        rng = np.random.default_rng([2, number])
        torch_rng = torch.Generator().manual_seed(number)
        masks = render(draw_words(names, ROUND * WORDS // 3, rng), rng)
        charts = draw_charts(ROUND, rng)

        def loss() -> Tensor:
            rows = torch.randint(len(masks.letters), [WORDS], generator=torch_rng)
            empty = torch.rand([WORDS], generator=torch_rng) < 0.1
            crops, ranks = cut_outs(masks, rows, stills, torch_rng, empty)
            letters = torch.where(empty[:, None], BLANK, masks.letters[rows])
            numbers = torch.randint(len(charts.letters), [NUMBERS], generator=torch_rng)
            more_crops, more_ranks = chart_cut_outs(charts, numbers, torch_rng)
            return recogniser_loss(
                reader.recogniser,
                torch.cat([crops, more_crops]),
                torch.cat([letters, charts.letters[numbers]]),
                torch.cat([ranks, more_ranks]),
            )

        return loss

    return run(reader.recogniser, round_losses, steps, checkpoint, 3e-3)


def locator_loss(locator: nn.Module, pixels: Tensor, lies: Tensor, shown: Tensor) -> Tensor:
    """Of which cell is asked, "nowhere" among them, and of how it says the text lies."""
    with torch.autocast("cpu", torch.bfloat16):
        heat, fields = locator(pixels.contiguous(memory_format=torch.channels_last))
    x, y, width, slope, height = lies[:, :, None].unbind(1)
    across, down = locator.places[:, 0] - x, locator.places[:, 1] - y
    half_width, half_height = width.exp(), height.exp()
    a = (across + slope * down) / half_width
    b = (down - slope * across) / half_height
    # Cells well inside the text answer for it; of a text smaller than a cell, those around.
    nearest = functional.one_hot((across**2 + down**2).argmin(1), across.shape[1])
    wanted = torch.exp(-4 * a**2 - 2 * b**2) + nearest
    wanted = wanted / wanted.sum(1, keepdim=True) * shown[:, None]
    wanted = torch.cat([wanted, (~shown)[:, None].float()], 1)
    said = functional.pad(heat.float(), (0, 1)).log_softmax(1)
    where = -(wanted * said).sum(1).mean()
    miss = (fields.float() - lies[:, :, None]) / torch.stack(
        [half_width, half_height, torch.ones_like(x), half_height / half_width, torch.ones_like(x)],
        1,
    )
    how = functional.smooth_l1_loss(miss, torch.zeros_like(miss), reduction="none", beta=0.1)
    return where + 2 * (how.sum(1) * wanted[:, :-1]).sum(1).mean()


def train_locator(
    reader: Reader, steps: int, checkpoint: Path, stills: Tensor | None
) -> list[float]:
    if stills is not None:
        stills = functional.avg_pool2d(stills.float(), 2).byte()

    def round_losses(number: int) -> Callable[[], Tensor]:
        rng = np.random.default_rng([3, number])
        torch_rng = torch.Generator().manual_seed(number)
        return lambda: locator_loss(reader.locator, *pictures(PICTURES, stills, rng, torch_rng))

    return run(reader.locator, round_losses, steps, checkpoint, 3e-3)


def run(
    net: nn.Module,
    round_losses: Callable[[int], Callable[[], Tensor]],
    steps: int,
    checkpoint: Path,
    rate: float,
) -> list[float]:
    """AdamW with a warm start and a cosine; returns the losses."""
    net.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.01)
    losses: list[float] = []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        losses = saved["losses"]
    while len(losses) < steps:
        loss_of = round_losses(len(losses) // ROUND)
        for _ in range(min(ROUND, steps - len(losses))):
            done = len(losses) / steps
            for group in optimiser.param_groups:
                warm = min(1.0, (len(losses) + 1) / 100)
                group["lr"] = rate * warm * (0.5 + 0.5 * math.cos(math.pi * done))
            loss = loss_of()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
        print(
            f"{checkpoint.stem} {len(losses)}/{steps}: {np.mean(losses[-ROUND:]):.3f}", flush=True
        )
        torch.save(
            {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "losses": losses},
            checkpoint,
        )
    net.eval()
    return losses


def calibrate(reader: Reader, samples: Iterable[Sample]) -> None:
    """Logistic regressions of whether there is print, and of whether the word is right."""
    rows, weighed, scenes = look(reader, samples)
    words = load_words()
    shown = torch.tensor([bool(scene.word) for scene in scenes]).float()
    right = torch.tensor([words[r] == s.word for r, s in zip(rows, scenes, strict=True)]).float()
    reader.presence.copy_(_logistic(weighed[:, [0, 1, 4]], shown))
    reader.certainty.copy_(_logistic(weighed, right))


def _logistic(x: Tensor, y: Tensor) -> Tensor:
    scale = x.abs().mean(0) + 1e-3
    weight = torch.zeros(x.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = functional.binary_cross_entropy_with_logits((x / scale) @ weight, y)
        value = value + 1e-3 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return (weight / scale).detach()


def train(
    folder: Path, scenes: Scenes, sorts: Sequence[str], steps: tuple[int, int], n: int
) -> Reader:
    """Train both networks, before `n` pictures of the sorts without print among others, and
    calibrate them; writes folder/reader.npz."""
    torch.manual_seed(0)
    reader = Reader()
    kept = folder / "reader_stills.npy"
    if not kept.exists():
        np.save(kept, draw_stills(scenes, sorts, n, np.random.default_rng(5)).numpy())
    stills = torch.from_numpy(np.load(kept))
    for train_part, n_steps, name in (
        (train_recogniser, steps[0], "recogniser"),
        (train_locator, steps[1], "locator"),
    ):
        losses = train_part(reader, n_steps, folder / f"reader_{name}.pt", stills)
        tenth = len(losses) // 10
        if np.mean(losses[-tenth:]) >= 0.9 * np.mean(losses[:tenth]):
            raise SystemExit(f"the {name} does not learn: {losses[:tenth]} to {losses[-tenth:]}")
    reader.eval()
    counts = {"text": n // 2, **dict.fromkeys(("chart", *sorts), n // 5)}
    calibrate(reader, draw_samples(scenes, np.random.default_rng(6), counts))
    np.savez(folder / READER.name, **{k: v.numpy() for k, v in reader.state_dict().items()})
    return reader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    torch.set_num_threads(1)
    if smoke:
        shapes = Scenes(held_out=False, cutouts=(), photos=())
        with tempfile.TemporaryDirectory() as folder:
            train(Path(folder), shapes, ("nothing", "things"), (40, 20), 10)
    else:
        CACHE.mkdir(parents=True, exist_ok=True)
        scenes = Scenes(held_out=False)
        train(CACHE, scenes, ("nothing", "things", "photo"), STEPS, 600)


if __name__ == "__main__":
    main()

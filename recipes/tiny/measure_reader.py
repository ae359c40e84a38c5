"""What the reader makes of held-out pictures.

python recipes/tiny/measure_reader.py --texts 500
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from printed import load_words
from reader import load_reader
from reader_net import Reader, lexicon_ids
from scenes import Sample, Scenes
from seen import SORTS, Scene
from torch import Tensor


def kept_apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words trained on, and a tenth that never is, to see whether letters are read."""
    names = [w for w in words if not w.isdigit()]
    order = np.random.default_rng(1).permutation(len(names))
    apart = [names[i] for i in order[: len(names) // 10]]
    return [names[i] for i in order[len(names) // 10 :]], apart


def draw_samples(
    scenes: Scenes, rng: np.random.Generator, counts: Mapping[str, int]
) -> Iterator[Sample]:
    for sort, count in counts.items():
        for _ in range(count):
            yield scenes.draw(rng, sort)


@torch.no_grad()
def look(reader: Reader, samples: Iterable[Sample]) -> tuple[Tensor, Tensor, list[Scene]]:
    """The likeliest words [n], what the calibration weighs [n, 5], and the truth."""
    ids = lexicon_ids(load_words())
    rows, weighed, scenes = [], [], []
    for sample in samples:
        pixels = torch.from_numpy(sample.pixels).permute(2, 0, 1)[None].float() / 255
        row, evidence = reader.weigh(pixels, ids)
        rows.append(row)
        weighed.append(evidence)
        scenes.append(sample.scene)
    return torch.cat(rows), torch.cat(weighed), scenes


def measure(reader: Reader, count: int, seed: int) -> None:
    """Print what the reader makes of held-out pictures."""
    words = load_words()
    apart = set(kept_apart(words)[1])
    counts = {"text": count, **dict.fromkeys(("chart", "things", "nothing", "photo"), count // 2)}
    samples = draw_samples(Scenes(held_out=True), np.random.default_rng(seed), counts)
    rows, weighed, scenes = look(reader, samples)
    presence = weighed[:, [0, 1, 4]] @ reader.presence > 0
    probability = (weighed @ reader.certainty).sigmoid()
    truth = [scene.word for scene in scenes]
    right = torch.tensor([words[r] == word for r, word in zip(rows, truth, strict=True)])
    groups = {sort: [s.sort == SORTS.index(sort) for s in scenes] for sort in counts}
    groups["words"] = [
        t and not word.isdigit() for t, word in zip(groups["text"], truth, strict=True)
    ]
    groups["words kept apart"] = [word in apart for word in truth]
    groups["all"] = [True] * len(truth)
    print("pictures | number | read right | print seen | probability | of it >= 0.5 and wrong")
    for name, members in groups.items():
        some = torch.tensor(members)
        wrong = (probability[some] >= 0.5) & ~right[some]
        figures = (right[some], presence[some], probability[some], wrong)
        means = " | ".join(f"{v.float().mean():.3f}" for v in figures)
        print(f"{name} | {int(some.sum())} | {means}")
    order = probability.argsort()
    better = (probability[right][:, None] > probability[~right]).float().mean()
    gaps = [
        abs(float(probability[part].mean() - right[part].float().mean()))
        for part in order.chunk(10)
    ]
    print(f"AUROC of the probability {better:.3f}, calibration error {np.mean(gaps):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trained = Reader()
    trained.load_state_dict({k: torch.from_numpy(v) for k, v in load_reader().items()})
    measure(trained.eval(), arguments.texts, arguments.seed)

"""How often the cache's near mode is wrong on pairs that are made to mislead it, and how often it
serves where it could.

    python tests/bench/cache_near.py                7,000 changed pairs (minutes)
    python tests/bench/cache_near.py --pairs 700 --seed 3

In each changed pair something small that a question could be about differs (`tests/near_pairs.py`
has the kinds and how faint they get), and the second picture may be taken with noise or saved
as a JPEG. The bound is Clopper and Pearson's (1934), upper, at 95%.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from near_pairs import CHANGES, HARMLESS, changed_pair, scene

from edgevlm.cache.sketch import Sketch


def main() -> None:
    arguments = _arguments()
    rng = np.random.default_rng(arguments.seed)
    each = math.ceil(arguments.pairs / len(CHANGES))
    false_hits = {
        kind: sum(_near(*changed_pair(rng, kind)) for _ in range(each)) for kind in CHANGES
    }
    served = {}
    for kind, change in HARMLESS.items():
        scenes = [scene(rng) for _ in range(arguments.harmless)]
        served[kind] = sum(_near(one, change(rng, one)) for one in scenes) / len(scenes)
    pairs = each * len(CHANGES)
    bound = upper_bound(sum(false_hits.values()), pairs)
    if arguments.json:
        result = {"pairs": pairs, "false_hits": false_hits, "bound": bound, "served": served}
        print(json.dumps(result))
        return
    for kind, count in false_hits.items():
        print(f"{kind:<20}{each:>7} changed pairs {count:>5} false hits")
    print(f"{'all':<20}{pairs:>7} changed pairs, at most {bound:.3%} false hits (95%)")
    for kind, share in served.items():
        print(f"{kind:<20}{arguments.harmless:>7} harmless pairs {share:>7.1%} served")


def upper_bound(hits: int, trials: int, confidence: float = 0.95) -> float:
    """The largest share under which so few hits are as likely as 1 - `confidence`."""
    low, high = hits / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        few = sum(_chance(k, trials, middle) for k in range(hits + 1))
        low, high = (middle, high) if few > 1 - confidence else (low, middle)
    return high


def _chance(hits: int, trials: int, share: float) -> float:
    """Of the binomial distribution, by logarithms, since its coefficients overflow."""
    ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    return math.exp(ways + hits * math.log(share) + (trials - hits) * math.log1p(-share))


def _near(one: np.ndarray, other: np.ndarray) -> bool:  # type: ignore[type-arg]
    sketches = Sketch.of(one), Sketch.of(other)
    assert sketches[0] is not None
    assert sketches[1] is not None
    return sketches[0].near(sketches[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7000)
    parser.add_argument("--harmless", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

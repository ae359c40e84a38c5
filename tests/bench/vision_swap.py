"""What adapters of a vision encoder cost a picture, and what is left in memory of many swaps.

    python tests/bench/vision_swap.py                       ONNX Runtime
    python tests/bench/vision_swap.py --runtime mlx
    python tests/bench/vision_swap.py --swaps 50 --json

Two random adapters of the tower and the projector take turns with the base, a picture each. The
encoder is a small SmolVLM's of random weights, so that what piles up shows beside it. A `Session`
keeps embeddings of pictures, up to 64 MB, which are not in this.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))
from adapter_swap import held_bytes, timed
from lora_factory import write_peft
from random_models import converted
from smolvlm_factory import make_random_model
from vision_adapters import tower_modules

from edgevlm import load_model
from edgevlm.adapters.peft import read_peft
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import adaptable

RUNTIMES = ("onnx", "mlx")
SIDE = 64
# No name of a module of the decoder.
TOWER = ("out_proj", "fc1", "fc2", "proj")


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:34}{value:12,.3f}" if isinstance(value, float) else f"{name:34}{value:>12}")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = make_random_model(folder / "source")
    model = folder / "model"
    converted(source, model, arguments.runtime)
    tower = {n: s for n, s in tower_modules(source).items() if n.rpartition(".")[2] in TOWER}
    packs = [
        write_peft(folder / name, source, targets=TOWER, extra=tower, seed=seed)
        for seed, name in enumerate(("one", "two"))
    ]
    with load_model(str(model), runtime=arguments.runtime) as loaded:
        vision = adaptable(loaded.vision, "one")
        sets = [{vision.load_adapter(read_peft(pack, name=pack.name)): 1.0} for pack in packs]
        image = loaded.family.preprocess(_picture())
        held, swapped, plain = [], [], []
        # A heap takes a while until it has what comes and goes.
        warm_up = arguments.swaps // 4
        for number in range(warm_up + arguments.swaps):
            if number == warm_up:
                held.append(held_bytes())
            chosen = sets[number % 2]
            swapped.append(timed(lambda a=chosen: vision.encode_with(image, a, Cancel()))[0])
            plain.append(timed(lambda: loaded.vision.encode(image, Cancel()))[0])
        held.append(held_bytes())
    return {
        "runtime": arguments.runtime,
        "swaps": arguments.swaps,
        "load average": round(os.getloadavg()[0], 2),
        "picture, swapped to an adapter ms": float(np.median(swapped[warm_up:])),
        "picture, back on the base ms": float(np.median(plain[warm_up:])),
        "memory after the swaps / before": held[1] / held[0],
    }


def _picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", default="onnx", choices=RUNTIMES)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

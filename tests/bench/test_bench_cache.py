"""The two benchmarks of the cache run and tell what they measured."""

from __future__ import annotations

import json
import sys

import cache_hit
import cache_near
import pytest


def test_it_tells_what_a_hit_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cache_hit.py", "--rounds", "3", "--kept", "5", "--top", "2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    cache_hit.main()
    small, large = json.loads(capsys.readouterr().out)
    assert 0 < small["hash_ms"] < large["hash_ms"]
    assert all(row["both_ms"] >= row["answer_ms"] > 0 for row in (small, large))
    monkeypatch.setattr(sys, "argv", arguments)
    cache_hit.main()
    assert "12 megapixels" in capsys.readouterr().out


def test_it_tells_how_often_near_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cache_near.py", "--pairs", "14", "--harmless", "2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    cache_near.main()
    result = json.loads(capsys.readouterr().out)
    assert result["pairs"] == 14
    assert sum(result["false_hits"].values()) == 0
    assert result["served"]["the same"] == 1
    monkeypatch.setattr(sys, "argv", arguments)
    cache_near.main()
    assert "at most" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("hits", "trials", "bound"), [(0, 3000, 0.000998), (1, 100, 0.04656), (3, 10, 0.60662)]
)
def test_the_bound_is_clopper_and_pearsons(hits: int, trials: int, bound: float) -> None:
    assert cache_near.upper_bound(hits, trials) == pytest.approx(bound, rel=1e-3)

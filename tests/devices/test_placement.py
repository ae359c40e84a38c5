"""Which placement is chosen: what answers soonest, on Apple's chips their own runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from edgevlm.devices.placement import choose_placement, rank
from edgevlm.engine.placement import Placement
from edgevlm.errors import NotSupported, UnknownRuntime, UsageError


@dataclass
class Foreseen:
    """An outlook by tables."""

    times: Mapping[str, float | None] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    apple: bool = False
    asked: list[str] = field(default_factory=list)

    def seconds(self, placement: Placement) -> float | None:
        self.asked.append(str(placement))
        return self.times.get(str(placement))

    def refusal(self, placement: Placement) -> str | None:
        return self.refused.get(placement.language) or self.refused.get(placement.vision)


def offers(*names: str) -> list[Placement]:
    return [Placement.parse(name) for name in names]


def test_the_sooner_answer_is_chosen() -> None:
    both = offers("onnx", "onnx+llamacpp")
    assert str(choose_placement(both, "auto", Foreseen({"onnx": 2, "onnx+llamacpp": 1}))) == (
        "onnx+llamacpp"
    )
    assert str(choose_placement(both, "auto", Foreseen({"onnx": 1, "onnx+llamacpp": 2}))) == "onnx"


def test_what_can_not_run_is_not_asked_for_its_time() -> None:
    outlook = Foreseen({"onnx": 2.0, "mlx": 1.0}, {"mlx": "it is not installed"})
    options = rank(offers("mlx", "onnx"), "auto", outlook)
    assert [str(option.placement) for option in options] == ["onnx", "mlx"]
    assert options[1].refused == "it is not installed"
    assert outlook.asked == []  # one that can run has nothing to be compared with


def test_without_every_time_the_devices_own_order_holds() -> None:
    outlook = Foreseen({"onnx": 2.0, "llamacpp": None})
    assert str(choose_placement(offers("llamacpp", "onnx"), "auto", outlook)) == "onnx"


def test_on_apple_chips_mlx_comes_first_and_core_ml_sees_where_it_can() -> None:
    apple = Foreseen({"mlx": 9, "llamacpp": 1, "onnx": 1, "mlx+llamacpp": 1}, apple=True)
    some = offers("onnx", "llamacpp", "mlx+llamacpp", "mlx", "llamacpp+mlx")
    assert str(choose_placement(some, "auto", apple)) == "mlx"
    assert str(choose_placement([*some, *offers("coreml+mlx")], "auto", apple)) == "coreml+mlx"
    without = Foreseen({}, {"mlx": "it is not installed"}, apple=True)
    assert str(choose_placement(some, "auto", without)) == "llamacpp"


def test_a_runtime_by_name_takes_both_parts_or_else_the_language_model() -> None:
    outlook = Foreseen({"llamacpp": 5, "onnx+llamacpp": 3, "onnx": 1})
    some = offers("onnx", "llamacpp", "onnx+llamacpp")
    assert str(choose_placement(some, "llamacpp", outlook)) == "llamacpp"
    some = offers("onnx", "onnx+llamacpp")
    assert str(choose_placement(some, "llamacpp", outlook)) == "onnx+llamacpp"


@pytest.mark.parametrize(("mixed", "chosen"), [(0.95, "onnx"), (0.8, "onnx+llamacpp")])
def test_two_runtimes_must_be_worth_it(mixed: float, chosen: str) -> None:
    outlook = Foreseen({"onnx": 1.0, "onnx+llamacpp": mixed})
    some = offers("onnx", "onnx+llamacpp")
    assert str(choose_placement(some, "auto", outlook)) == chosen


def test_what_is_asked_for_is_obeyed_or_refused_with_its_reason() -> None:
    outlook = Foreseen({}, {"onnx": "its module is broken"})
    with pytest.raises(NotSupported, match="its module is broken"):
        choose_placement(offers("onnx", "llamacpp"), "onnx", outlook)
    with pytest.raises(UnknownRuntime):
        choose_placement(offers("onnx"), "abacus")
    with pytest.raises(UsageError, match="no placement"):
        choose_placement(offers("onnx"), "onnx+")


def test_where_nothing_can_run_all_reasons_are_told() -> None:
    outlook = Foreseen({}, {"onnx": "no module", "llamacpp": "no compiler"})
    with pytest.raises(NotSupported, match=r"onnx: no module.*llamacpp: no compiler"):
        choose_placement(offers("onnx", "llamacpp"), "auto", outlook)


def test_what_fits_comes_before_what_is_sooner_and_what_is_here_too() -> None:
    outlook = Foreseen({"onnx": 1, "llamacpp": 2, "onnx+llamacpp": 3})
    some = offers("onnx", "llamacpp", "onnx+llamacpp")
    small = offers("llamacpp", "onnx+llamacpp")

    def chosen(wanted: str = "auto", fitting: list[Placement] = some, *here: str) -> str:
        return str(
            choose_placement(some, wanted, outlook, fits=lambda p: p in fitting, here=offers(*here))
        )

    assert chosen() == "onnx"
    assert chosen("auto", small) == "llamacpp"
    assert chosen("auto", some, "onnx+llamacpp") == "onnx+llamacpp"
    # Neither makes up for what is asked for, what can run, or what fits.
    assert chosen("onnx", some, "llamacpp") == "onnx"
    assert chosen("auto", small, "onnx") == "llamacpp"
    assert chosen("auto", []) == "onnx"
    assert chosen("auto", [], "llamacpp") == "llamacpp"

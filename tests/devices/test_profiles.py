"""Every profile that ships is whole, and each of its figures says where it is from."""

from __future__ import annotations

import re

import pytest

from edgevlm.devices.profiles import (
    find_profile,
    load_profiles,
    parse_profile,
    profile_of_chip,
    profiles_folder,
)
from edgevlm.errors import EdgeVLMError, UsageError
from edgevlm.runtimes import installed_runtimes

WHOLE = """\
title = "A board"
kind = "board"
chip = "Some chip"
runtimes = ["onnx"]
[memory]
bytes = { value = 100, source = "page" }
for_one_app = { value = 80, source = "page" }
bandwidth = { value = 10.5, source = "page" }
[cpu]
gflops = { value = 50, source = "page" }
[sources]
page = "https://example.org/board"
"""


@pytest.mark.parametrize("name", sorted(path.stem for path in profiles_folder().glob("*.toml")))
def test_a_shipped_profile(name: str) -> None:
    profile = load_profiles()[name]
    assert set(profile.runtimes) <= {*installed_runtimes(), "coreml"}
    assert 2**30 <= profile.for_one_app <= profile.memory <= 2**40
    assert 1 < profile.bandwidth < 2000
    assert 50 < profile.gflops["cpu"] < 10_000
    for source in profile.sources.values():
        assert re.match(r"https?://\S+|estimated|this profile's own choice", source)
    if profile.chip.startswith("Apple M") and profile.kind != "tablet":
        assert profile_of_chip(profile.chip) is not None
        assert {"gpu", "npu"} <= set(profile.gflops)


@pytest.mark.parametrize(
    ("chip", "name"),
    [
        ("Apple M1", "apple-m1"),
        ("Apple M1 Max", "apple-m1-max"),
        ("Apple M3 Ultra", "apple-m3"),
        ("Apple M10", None),
        ("Apple", None),
    ],
)
def test_a_chip_without_a_profile_has_that_of_its_kind(chip: str, name: str | None) -> None:
    found = profile_of_chip(chip)
    assert (found and found.name) == name


def test_the_devices_that_people_have_are_there() -> None:
    names = set(load_profiles())
    assert len(names) >= 16
    for wanted in ("apple-m1", "apple-m2", "apple-m3", "apple-m4", "apple-m5", "iphone-15-pro"):
        assert wanted in names
    for wanted in ("pixel-9", "galaxy-s24-ultra", "raspberry-pi-5-8gb", "jetson-orin-nano"):
        assert wanted in names
    assert {"ipad-pro-m4", "jetson-agx-orin", "pc-8gb", "pc-16gb", "pc-32gb"} <= names


def test_a_name_that_is_not_there_gets_those_that_are_near() -> None:
    with pytest.raises(UsageError) as caught:
        find_profile("aple-m4")
    assert "apple-m4" in (caught.value.hint or "")


def test_a_profile_reads() -> None:
    profile = parse_profile("board", WHOLE)
    assert (profile.memory, profile.for_one_app, profile.bandwidth) == (100, 80, 10.5)
    assert profile.gflops == {"cpu": 50.0}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('bandwidth = { value = 10.5, source = "page" }', "", "memory.bandwidth"),
        ("value = 10.5", 'value = "fast"', "memory.bandwidth"),
        ('10.5, source = "page"', '10.5, source = "nowhere"', "nowhere"),
        ("{ value = 50, ", "{ ", "cpu.gflops"),
        ('kind = "board"', 'kind = "toaster"', "kind"),
        ("[cpu]", "[cpu]\nspeed = 1", "speed"),
        ("value = 80", "value = 800", "more memory"),
        ("[sources]", '[sources]\nother = "https://example.org"', "other"),
        ("[memory]", "[memory", "wrong"),
    ],
)
def test_a_profile_that_is_not_whole_says_so(old: str, new: str, words: str) -> None:
    assert old in WHOLE
    with pytest.raises(EdgeVLMError, match="The device profile 'board' is wrong") as caught:
        parse_profile("board", WHOLE.replace(old, new))
    assert words in str(caught.value)

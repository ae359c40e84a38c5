from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.errors import SettingsError
from edgevlm.settings import Settings, load_settings


def test_arguments_beat_environment_beats_file_beats_defaults(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text('model = "from-file"\nroute = "local"\nthreads = 3\n')
    environ = {"EDGEVLM_HOME": str(home), "EDGEVLM_MODEL": "from-env", "EDGEVLM_THREADS": "2"}
    settings = load_settings(environ, threads=1)
    assert (settings.route, settings.model, settings.threads) == ("local", "from-env", 1)
    assert settings.runtime == "auto"


def test_every_setting_has_its_variable(home: Path) -> None:
    environ = {
        "EDGEVLM_HOME": str(home),
        "EDGEVLM_OFFLINE": "1",
        "EDGEVLM_MODEL": "a",
        "EDGEVLM_RUNTIME": "b",
        "EDGEVLM_ROUTE": "cloud",
        "EDGEVLM_THREADS": "3",
        "EDGEVLM_CONTEXT_LENGTH": "4",
        "EDGEVLM_MAX_PIXELS": "5",
        "EDGEVLM_CACHE": "near",
        "EDGEVLM_CACHE_BYTES": "6",
        "EDGEVLM_LOG_PROMPTS": "1",
    }
    settings = Settings(home, True, "a", "b", "cloud", 3, 4, 5, "near", 6, True)
    assert load_settings(environ) == settings


@pytest.mark.parametrize(("word", "flag"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_offline_reads_words(home: Path, word: str, flag: bool) -> None:
    assert load_settings({"EDGEVLM_HOME": str(home), "EDGEVLM_OFFLINE": word}).offline is flag


@pytest.mark.parametrize(("word", "mode"), [("1", "on"), ("off", "off"), ("0", "off")])
def test_the_cache_is_on_or_off_or_near(home: Path, word: str, mode: str) -> None:
    assert load_settings({"EDGEVLM_HOME": str(home), "EDGEVLM_CACHE": word}).cache == mode


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EDGEVLM_OFFLINE", "perhaps"),
        ("EDGEVLM_ROUTE", "pigeon"),
        ("EDGEVLM_THREADS", "0"),
        ("EDGEVLM_THREADS", "many"),
        ("EDGEVLM_THREADS", "99999999999"),
        ("EDGEVLM_MAX_PIXELS", "-4"),
        ("EDGEVLM_CACHE", "far"),
    ],
)
def test_a_bad_value_names_its_setting(home: Path, variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match="environment") as caught:
        load_settings({"EDGEVLM_HOME": str(home), variable: value})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["model = ", "colour = 'red'", "threads = true", "model = ''"])
def test_a_bad_file_is_named(home: Path, text: str) -> None:
    home.mkdir()
    (home / "config.toml").write_text(text)
    with pytest.raises(SettingsError, match=r"config\.toml"):
        load_settings({"EDGEVLM_HOME": str(home)})

"""One settings object: defaults < `config.toml` in the home folder < environment < arguments.

| setting          | environment              | meaning                                           |
|------------------|--------------------------|---------------------------------------------------|
| `home`           | `EDGEVLM_HOME`           | the one folder that holds all state               |
| `offline`        | `EDGEVLM_OFFLINE`        | no network at all                                 |
| `model`          | `EDGEVLM_MODEL`          | model name, hub id or folder; `auto` chooses      |
| `runtime`        | `EDGEVLM_RUNTIME`        | runtime or placement; `auto` chooses              |
| `route`          | `EDGEVLM_ROUTE`          | `local`, `auto`, `cloud` or `split`               |
| `threads`        | `EDGEVLM_THREADS`        | compute threads; unset: one a physical core       |
| `context_length` | `EDGEVLM_CONTEXT_LENGTH` | most tokens of a conversation; unset: the model's |
| `max_pixels`     | `EDGEVLM_MAX_PIXELS`     | largest picture that is decoded                   |
| `cache`          | `EDGEVLM_CACHE`          | keep answers: `on`, `off`, `near` pictures too    |
| `cache_bytes`    | `EDGEVLM_CACHE_BYTES`    | most bytes of answers that are kept               |
| `log_prompts`    | `EDGEVLM_LOG_PROMPTS`    | questions and answers go into the route log, too  |

`home` can't stand in the file, which is in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevlm.errors import SettingsError

ROUTES = ("local", "auto", "cloud", "split")
_MOST_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    home: Path
    offline: bool = False
    model: str = "auto"
    runtime: str = "auto"
    route: str = "auto"
    threads: int | None = None
    context_length: int | None = None
    max_pixels: int = 40_000_000
    cache: str = "on"
    cache_bytes: int = 64 * 2**20
    log_prompts: bool = False


def load_settings(environ: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
    """Read the file and the environment; `arguments` that are not None win.

    Raises SettingsError naming the setting and where it came from.
    """
    environ = os.environ if environ is None else environ
    home = Path(environ.get("EDGEVLM_HOME") or _default_home()).expanduser().absolute()
    settings = Settings(home=home)
    config = home / "config.toml"
    settings = _with(settings, _read_toml(config), source=str(config))
    from_environ = {
        name: value for name in _PARSERS if (value := environ.get(f"EDGEVLM_{name.upper()}"))
    }
    settings = _with(settings, from_environ, source="the environment")
    given = {name: value for name, value in arguments.items() if value is not None}
    return _with(settings, given, source="the arguments")


def _default_home() -> str:
    from platformdirs import user_data_dir

    return user_data_dir("edgevlm", appauthor=False)


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"Can't read {path}: {error}", hint="Mend or remove it.") from error
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}", hint="Mend the line.") from error


def _with(settings: Settings, values: Mapping[str, Any], *, source: str) -> Settings:
    checked: dict[str, Any] = {}
    for name, value in values.items():
        parse = _PARSERS.get(name)
        if parse is None:
            raise SettingsError(
                f"Unknown setting {name!r} in {source}.",
                hint=f"Known settings: {', '.join(sorted(_PARSERS))}.",
            )
        try:
            checked[name] = parse(value)
        except (TypeError, ValueError) as error:
            raise SettingsError(
                f"Setting {name!r} from {source} can't be {value!r}: {error}.",
                hint=f"Correct it in {source}.",
            ) from error
    return replace(settings, **checked)


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("use 1 or 0")


def _positive(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError("use a whole number")
    number = int(value)
    if number < 1:
        raise ValueError("use a number above 0")
    return number


def _threads(value: object) -> int:
    number = _positive(value)
    if number > _MOST_THREADS:
        raise ValueError(f"use at most {_MOST_THREADS}")
    return number


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("use a name")
    return value.strip()


def _route(value: object) -> str:
    if value not in ROUTES:
        raise ValueError(f"use one of {', '.join(ROUTES)}")
    return str(value)


def _cache(value: object) -> str:
    if isinstance(value, str) and value.strip().lower() == "near":
        return "near"
    try:
        return "on" if _flag(value) else "off"
    except ValueError:
        raise ValueError("use 1, 0 or near") from None


_PARSERS: dict[str, Callable[[object], Any]] = {
    "offline": _flag,
    "model": _text,
    "runtime": _text,
    "route": _route,
    "threads": _threads,
    "context_length": _positive,
    "max_pixels": _positive,
    "cache": _cache,
    "cache_bytes": _positive,
    "log_prompts": _flag,
}

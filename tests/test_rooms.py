"""No module imports from a room that ARCHITECTURE.md does not give it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import edgevlm

PACKAGE = Path(edgevlm.__file__).parent
EVERYWHERE = {"errors", "messages", "__version__"}


def test_imports_keep_to_the_rooms_table() -> None:
    allowed = rooms_table()
    imports = {path: imported_rooms(path) for path in sorted(PACKAGE.rglob("*.py"))}
    rooms = {path: room_of(path) for path in imports if path != PACKAGE / "__init__.py"}
    assert set(rooms.values()) == set(allowed)
    strange = {
        str(path.relative_to(PACKAGE)): sorted(found)
        for path, room in rooms.items()
        if (found := imports[path] - allowed[room] - {room} - EVERYWHERE)
    }
    assert strange == {}


def rooms_table() -> dict[str, set[str]]:
    """What each room may import."""
    allowed: dict[str, set[str]] = {}
    for line in (PACKAGE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("| `"):
            continue
        names, _, imports = line.strip("| ").split(" | ")
        named = set(re.findall(r"[a-z]+", imports))
        for name in re.findall(r"`([a-z]+)(?:\.py|/)`", names):
            allowed[name] = set(allowed) - named if "all" in named else named
    return allowed


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("edgevlm.")}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")

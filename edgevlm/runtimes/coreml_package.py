"""What a Core ML package takes and gives, read and checked before Core ML opens it.

A package is a folder: `Manifest.json` names the items under `Data/`, among them the program
(a protocol buffer) and the folder of its weights. It comes from elsewhere, so no path or
offset in it is believed before it was checked against the files.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.runtimes.coreml_quiet import coremltools

_PLAIN_PATH = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_BESIDE_PROGRAM = "@model_path/"
# Each block of weights begins with this header: a sentinel, a type, bytes, and where they begin.
_BLOB = struct.Struct("<IIQQ")
_SENTINEL = 0xDEADBEEF
_HINT = "Convert the model again, or fetch it again."


@dataclass(frozen=True, slots=True)
class Port:
    """An input, output or state. `shape` has the least and the largest size of a dimension."""

    name: str
    shape: tuple[tuple[int, int], ...]
    type: str


@dataclass(frozen=True, slots=True)
class PackageInfo:
    """A sound package: `path` is its folder."""

    path: Path
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    states: Mapping[str, Port]


def require_role(files: ModelFiles, role: str) -> Path:
    """The file of a role. Raises ModelCorrupt."""
    path = files.roles.get(role)
    if path is None or not path.is_file():
        raise ModelCorrupt(
            f"{files.name} has no {role} for Core ML.",
            hint="`edgevlm model convert MODEL --runtime coreml` makes it.",
        )
    return path


def read_package(manifest: Path) -> PackageInfo:
    """Read the package of a `Manifest.json`. Raises ModelCorrupt, NotSupported."""
    package = manifest.parent
    program = _program_path(package)
    model = coremltools.proto.Model_pb2.Model()
    try:
        model.ParseFromString(program.read_bytes())
    except Exception as error:  # protobuf's own, whose place depends on its build
        raise refusal(package, f"{program.name} can't be read") from error
    if model.WhichOneof("Type") != "mlProgram":
        raise NotSupported(f"{package.name} holds no ML program.", hint=_HINT)
    _check_weights(package, program, model)
    description = model.description
    return PackageInfo(
        package,
        {each.name: _port(each.name, each.type.multiArrayType) for each in description.input},
        {each.name: _port(each.name, each.type.multiArrayType) for each in description.output},
        {each.name: _port(each.name, each.type.stateType.arrayType) for each in description.state},
    )


def refusal(package: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{package.name} can't be used: {what}.", hint=_HINT)


def _program_path(package: Path) -> Path:
    """The program that the manifest names, with every item of it in its place."""
    try:
        manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
        items = {key: entry["path"] for key, entry in manifest["itemInfoEntries"].items()}
        root = items[manifest["rootModelIdentifier"]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise refusal(package, "its Manifest.json can't be read") from error
    for path in items.values():
        if not isinstance(path, str) or not _PLAIN_PATH.fullmatch(path):
            raise refusal(package, f"its Manifest.json names the path {str(path)[:80]!r}")
        if not (package / "Data" / path).exists():
            raise refusal(package, f"it lacks Data/{path}")
    program: Path = package / "Data" / root
    if not program.is_file():
        raise refusal(package, f"Data/{root} is not a program")
    return program


def _check_weights(package: Path, program: Path, model: Any) -> None:
    """Every block of weights lies whole in a file beside the program."""
    sizes: dict[str, int] = {}
    for name, offset in _blobs(model.mlProgram):
        relative = name.removeprefix(_BESIDE_PROGRAM)
        if relative == name or not _PLAIN_PATH.fullmatch(relative):
            raise refusal(package, f"it names the weights {name[:80]!r}")
        path = program.parent / relative
        if not path.is_file():
            raise refusal(package, f"it lacks {path.relative_to(package).as_posix()}")
        size = sizes.setdefault(relative, path.stat().st_size)
        if not _is_whole(path, offset, size):
            raise refusal(package, f"{path.relative_to(package).as_posix()} is cut or altered")


def _is_whole(path: Path, offset: int, size: int) -> bool:
    if offset + _BLOB.size > size:
        return False
    with path.open("rb") as file:
        file.seek(offset)
        sentinel, _, n_bytes, begin = _BLOB.unpack(file.read(_BLOB.size))
    return bool(sentinel == _SENTINEL and begin + n_bytes <= size)


def _blobs(program: Any) -> Iterator[tuple[str, int]]:
    """File name and offset of all weights of a program."""
    blocks = [
        block
        for function in program.functions.values()
        for block in function.block_specializations.values()
    ]
    while blocks:
        for operation in blocks.pop().operations:
            blocks.extend(operation.blocks)
            values = list(operation.attributes.values())
            for argument in operation.inputs.values():
                values.extend(a.value for a in argument.arguments if a.HasField("value"))
            for value in values:
                if value.HasField("blobFileValue"):
                    yield value.blobFileValue.fileName, value.blobFileValue.offset


def _port(name: str, array: Any) -> Port:
    ranges = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
    shape = tuple(ranges) or tuple((size, size) for size in array.shape)
    return Port(name, shape, array.ArrayDataType.Name(array.dataType))

"""The projector of edgevlm-tiny: class scores in, token embeddings of honest words out.

It reads the classifier's probabilities the way a careful person would say them. A class that
is likely enough is named; where only its kind is (six breeds share the evidence for "a dog"),
the kind is; two classes that are about equal become "either ... or"; and below that nothing
is named at all, so that the decoder has no word from which to invent. What is chosen is
written as embeddings of the decoder's own vocabulary, in fixed slots:

    certainty | name | second name | kind | broad kind

`describe` is the same in numpy; it makes the training data, and the tests of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from classifier import half
from numpy.typing import NDArray
from onnx import TensorProto
from tokenizers import Tokenizer

from edgevlm.models.onnx_export.graph import Graph

CLASSES = Path(__file__).with_name("classes.txt")

# Slot widths in tokens.
NAME, KIND, BROAD = 6, 4, 3
N_TOKENS = 1 + 2 * NAME + KIND + BROAD
CERTAINTIES = (" clear", " probably", " either", " unclear")
CLEAR, PROBABLY, EITHER, UNCLEAR = range(4)
BLANK = " -"

# Chosen by hand on 101 labelled pictures of Debian's gcompris-qt-data, none of which is in
# photos.toml. The classifier was trained with label smoothing, so 0.35 is already strong.
NAME_AT = 0.35
KIND_AT = 0.35
PROBABLY_AT = 0.15
# Two classes in five are animals, so this much is weak evidence: it is never said as certain.
BROAD_AT = 0.50
# A runner-up this close to the best one makes the answer "either ... or".
RIVAL = 0.60


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything the projector can say. Names are classes, then kinds, then broad kinds.

    `kind_of` and `broad_of` [1000] index `names`, or are -1.
    """

    names: tuple[str, ...]
    kind_of: NDArray[np.int64]
    broad_of: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reading:
    """What is said about one picture: indices into `Vocabulary.names`, -1 for nothing."""

    certainty: int
    name: int
    second: int
    kind: int
    broad: int


def load_vocabulary(path: Path = CLASSES) -> Vocabulary:
    rows = [line.split("|") for line in path.read_text(encoding="utf-8").splitlines()]
    columns = [[cell.strip() for cell in column] for column in zip(*rows, strict=True)]
    classes, kinds, broads = columns
    names = classes + sorted(set(kinds) - {""}) + sorted(set(broads) - {""})
    first_broad = len(names) - len(set(broads) - {""})
    kind_index = {
        name: len(classes) + i for i, name in enumerate(names[len(classes) : first_broad])
    }
    broad_index = {name: first_broad + i for i, name in enumerate(names[first_broad:])}
    return Vocabulary(
        tuple(names),
        np.array([kind_index.get(kind, -1) for kind in kinds]),
        np.array([broad_index.get(broad, -1) for broad in broads]),
    )


def describe(probabilities: NDArray[np.float32], vocabulary: Vocabulary) -> Reading:
    """Read class probabilities [1000]."""
    best, rival = (int(i) for i in np.argsort(-probabilities, kind="stable")[:2])
    kind, broad = int(vocabulary.kind_of[best]), int(vocabulary.broad_of[best])
    # The rival's mass counts for the kind where they share one.
    kind_mass = float(probabilities[vocabulary.kind_of == kind].sum()) if kind >= 0 else 0.0
    broad_mass = float(probabilities[vocabulary.broad_of == broad].sum()) if broad >= 0 else 0.0
    top, second = float(probabilities[best]), float(probabilities[rival])
    close = second >= RIVAL * top
    known_kind = kind if kind_mass >= KIND_AT else -1
    if top >= NAME_AT and not close:
        return Reading(CLEAR, best, -1, kind, broad)
    if known_kind >= 0:
        return Reading(CLEAR, known_kind, -1, known_kind, broad)
    if close and top + second >= NAME_AT:
        return Reading(EITHER, best, rival, -1, -1)
    if top >= PROBABLY_AT:
        return Reading(PROBABLY, best, -1, kind, broad)
    if broad_mass >= BROAD_AT:
        return Reading(PROBABLY, broad, -1, -1, broad)
    return Reading(UNCLEAR, -1, -1, -1, -1)


def token_rows(vocabulary: Vocabulary, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return [n_names + 1, 6]: the token ids of every name, blank-filled; the last is blank."""
    blank = _ids(tokenizer, BLANK)[0]
    rows = np.full((len(vocabulary.names) + 1, NAME), blank)
    for row, name in zip(rows, vocabulary.names, strict=False):
        ids = _ids(tokenizer, " " + name)
        if len(ids) > NAME:
            raise ValueError(f"{name!r} has {len(ids)} tokens; {NAME} fit")
        row[: len(ids)] = ids
    return rows


def write(reading: Reading, rows: NDArray[np.int64], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the ids [N_TOKENS] whose embeddings the projector gives for `reading`."""
    certainty = _ids(tokenizer, CERTAINTIES[reading.certainty])
    return np.concatenate(
        [
            certainty,
            rows[reading.name],
            rows[reading.second],
            rows[reading.kind][:KIND],
            rows[reading.broad][:BROAD],
        ]
    )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def add_projector(
    graph: Graph,
    logits: str,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    embeddings: NDArray[np.float32],
) -> str:
    """Add `describe` and `write` as nodes: logits [n, 1000] to embeddings [n, N_TOKENS, d]."""
    with graph.scope("projector"):
        fields = _add_reading(graph, logits, vocabulary)
        certainty_rows, name_rows, used = _compact_rows(vocabulary, tokenizer)
        widths = (1, NAME, NAME, KIND, BROAD)
        tables = (certainty_rows, *[name_rows] * 4)
        slots = [
            graph.node("Gather", graph.constant(table[:, :width]), field)
            for table, width, field in zip(tables, widths, fields, strict=True)
        ]
        ids = graph.node("Concat", *slots, axis=1)
        return graph.node("Gather", half(graph, "projector.words", embeddings[used]), ids)


def _add_reading(graph: Graph, logits: str, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Add `describe`: the five fields of a `Reading`, int64 [n] each, blank as the last row."""
    node, blank = graph.node, graph.constant([len(vocabulary.names)])
    kinds = _Groups(graph, vocabulary.kind_of, len(vocabulary.names))
    broads = _Groups(graph, vocabulary.broad_of, len(vocabulary.names))

    probabilities = node("Softmax", logits, axis=-1)
    values, classes = graph.nodes("TopK", probabilities, graph.constant([2]), n_outputs=2, axis=1)
    best, rival = (node("Gather", classes, graph.constant(i), axis=1) for i in (0, 1))
    top, second = (node("Gather", values, graph.constant(i), axis=1) for i in (0, 1))
    kind, broad = kinds.of(best), broads.of(best)

    def at_least(value: str, limit: float) -> str:
        return node("GreaterOrEqual", value, graph.constant(limit, np.float32))

    rival_level = node("Mul", top, graph.constant(RIVAL, np.float32))
    close = node("GreaterOrEqual", second, rival_level)
    # First match wins, as in `describe`.
    conditions = (
        node("And", at_least(top, NAME_AT), node("Not", close)),
        at_least(kinds.mass(probabilities, kind), KIND_AT),
        node("And", close, at_least(node("Add", top, second), NAME_AT)),
        at_least(top, PROBABLY_AT),
        at_least(broads.mass(probabilities, broad), BROAD_AT),
    )

    def first_match(*values: str) -> str:
        result = values[-1]
        for condition, value in reversed(list(zip(conditions, values, strict=False))):
            result = node("Where", condition, value, result)
        return result

    certainties = [graph.constant([c]) for c in (CLEAR, CLEAR, EITHER, PROBABLY, PROBABLY, UNCLEAR)]
    return (
        first_match(*certainties),
        first_match(best, kind, best, best, broad, blank),
        first_match(blank, blank, rival, blank, blank, blank),
        first_match(kind, kind, blank, kind, blank, blank),
        first_match(broad, broad, blank, broad, broad, blank),
    )


class _Groups:
    """Classes by kind or broad kind, in a graph."""

    def __init__(self, graph: Graph, group_of: NDArray[np.int64], blank: int) -> None:
        self._graph = graph
        self._blank = graph.constant(blank)
        self._group_of = graph.constant(np.where(group_of < 0, blank, group_of))

    def of(self, classes: str) -> str:
        return self._graph.node("Gather", self._group_of, classes)

    def mass(self, probabilities: str, group: str) -> str:
        """The summed probability [n] of the classes of `group` [n]; 0 for the blank group."""
        node, axis = self._graph.node, self._graph.constant([1])
        same = node("Equal", self._group_of, node("Unsqueeze", group, axis))
        members = node("Cast", same, to=TensorProto.FLOAT)
        mass = node("ReduceSum", node("Mul", probabilities, members), axis, keepdims=0)
        exists = node("Cast", node("Less", group, self._blank), to=TensorProto.FLOAT)
        return node("Mul", mass, exists)


def _compact_rows(
    vocabulary: Vocabulary, tokenizer: Tokenizer
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Certainty rows [4, 1] and name rows [n_names + 1, 6] into `used`, the token ids [n]."""
    certainties = np.array([_ids(tokenizer, word) for word in CERTAINTIES])
    names = token_rows(vocabulary, tokenizer)
    used, index = np.unique(
        np.concatenate([certainties.ravel(), names.ravel()]), return_inverse=True
    )
    split = certainties.size
    return index[:split].reshape(-1, 1), index[split:].reshape(names.shape), used


def slots(readings: Sequence[Reading], vocabulary: Vocabulary) -> list[str]:
    """The readings in words, for logs and reports."""

    def say(index: int) -> str:
        return vocabulary.names[index] if index >= 0 else "-"

    return [
        f"{CERTAINTIES[r.certainty].strip()}: {say(r.name)} | {say(r.second)} | {say(r.kind)} | "
        f"{say(r.broad)}"
        for r in readings
    ]

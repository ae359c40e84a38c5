"""The projector of edgevlm-tiny as ONNX nodes: measurements in, token embeddings of words out.

Node for node what projector.py and spatial_projector.py do in numpy. Indices are int64 with -1
for nothing, which gathers the last, blank row of every table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from graph_arithmetic import Arithmetic
from numpy.typing import NDArray
from onnx import TensorProto
from projector import (
    BROAD,
    BROAD_AT,
    CERTAINTIES,
    CLEAR,
    CONCEPT_CLEAR_AT,
    CONCEPT_PROBABLY_AT,
    EITHER,
    KIND,
    KIND_AT,
    LONE_PROBABLY_AT,
    NAME_AT,
    PROBABLY,
    PROBABLY_AT,
    RIVAL,
    UNCLEAR,
    Table,
    Vocabulary,
    said_rows,
    token_rows,
)
from seen import MAX_THINGS, NUMBERS, PLACE_EDGES, SIZE_EDGES, SLOT_WIDTH, SORTS, SURFACES
from spatial_projector import (
    ALIKE_FROM,
    BLUE,
    BROWN,
    BROWN_FROM_OTHERS,
    BROWN_TO_RED,
    CHART,
    CONCEPT_IN_PHOTO_AT,
    GREEN,
    LARGE_FROM,
    NAME_IN_PHOTO_AT,
    NOTHING,
    ORANGE,
    PART_FROM,
    PHOTO,
    PINK,
    PURPLE,
    RED,
    SECOND_AT,
    STRAY_WORD_AT,
    SURE_THING_AT,
    SURFACE_AT,
    TEAL_FROM_PURPLE,
    TEAL_TO_GREEN,
    TEXT,
    THING_AT,
    THING_IN_PHOTO_AT,
    THINGS,
    WORD_CLEAR_AT,
    WORD_PROBABLY_AT,
    is_shape,
    slot_tables,
    thing_rows,
    word_rows,
)
from tokenizers import Tokenizer
from views import LookNodes

from edgevlm.models.onnx_export.graph import Graph

Rows = NDArray[np.int64]
FLOAT = TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The decoder's token embeddings as its file has them: `levels` int8 [tokens, blocks, 32]
    times `scales` float16 [tokens, blocks]."""

    levels: NDArray[np.int8]
    scales: NDArray[np.float16]


class WordNodes(NamedTuple):
    """Names of graph values: the row of words.txt [n] int64 and its probability [n]."""

    row: str
    probability: str


class _Reading(NamedTuple):
    """Names of graph values that hold the fields of `Reading`s, int64 [n] or [n, 5]."""

    certainty: str
    name: str
    second: str
    kind: str
    broad: str


def add_projector(
    graph: Graph,
    look: LookNodes,
    word: WordNodes,
    vocabulary: Vocabulary,
    words: Sequence[str],
    tokenizer: Tokenizer,
    embeddings: Embeddings,
) -> str:
    """Add `sight`, `write` and `write_spatial`, to embeddings [n, N_TOKENS, d].

    `words` are those of words.txt.
    """
    with graph.scope("projector"):
        said = _Projector(graph, look, word, vocabulary)
        names, things = token_rows(vocabulary, tokenizer), thing_rows(vocabulary, tokenizer)
        certainties = said_rows(CERTAINTIES, tokenizer)
        tables = [
            *(certainties, names, names, names[:, :KIND], names[:, :BROAD]),
            *(said_rows(SORTS, tokenizer), said_rows(NUMBERS, tokenizer)),
            *(certainties, word_rows(words, tokenizer)),
            *slot_tables(things, tokenizer),
        ]
        return _write(graph, said.of_picture, said.of_things, tables, embeddings)


def _write(
    graph: Graph,
    of_picture: Sequence[str],
    of_things: Sequence[str],
    tables: Sequence[Rows],
    embeddings: Embeddings,
) -> str:
    """Embed what fields of the picture [n] and then of its things [n, 5] choose from tables."""
    used = np.unique(np.concatenate([table.ravel() for table in tables]))
    gathered = [
        graph.node("Gather", graph.constant(np.searchsorted(used, table), np.int32), field)
        for field, table in zip([*of_picture, *of_things], tables, strict=True)
    ]
    things = graph.node("Concat", *gathered[len(of_picture) :], axis=2)
    flat = graph.node("Reshape", things, graph.constant([-1, MAX_THINGS * SLOT_WIDTH]))
    ids = graph.node("Concat", *gathered[: len(of_picture)], flat, axis=1)
    return _embed(graph, ids, embeddings.levels[used], embeddings.scales[used])


def _embed(graph: Graph, ids: str, levels: NDArray[np.int8], scales: NDArray[np.float16]) -> str:
    """Look tokens [n, N_TOKENS] up, on the decoder's own grid."""
    numbers = (
        graph.node("Cast", graph.node("Gather", graph.weight(name, table), ids), to=FLOAT)
        for name, table in (("words.levels", levels), ("words.scales", scales[..., None]))
    )
    shape = graph.constant([0, 0, levels[0].size])
    return graph.node("Reshape", graph.node("Mul", *numbers), shape)


class _Projector:
    """`sight` as nodes. `of_picture` and `of_things` are the fields to write, in their order."""

    def __init__(
        self, graph: Graph, look: LookNodes, word: WordNodes, vocabulary: Vocabulary
    ) -> None:
        self._graph = graph
        self._do = do = Arithmetic(graph)
        self._blank = do.index(-1)
        self._sort = self._sort_of(look, word)
        in_drawing, in_photo = (do.is_any(self._sort, sort) for sort in (THINGS, PHOTO))

        whole = do("Softmax", look.concepts, axis=-1)
        things = do("Softmax", look.thing_concepts, axis=-1)
        kept = self._kept(look, whole, things, in_drawing, in_photo)
        count = do.count(kept)
        alone = do.both(in_drawing, do.is_any(count, 1))
        things = self._seen_whole(look, things, do.along(whole, 1), do.along(alone, 1))
        things = self._agreed(things, kept)
        limits = (do.number(LONE_PROBABLY_AT), do.number(CONCEPT_PROBABLY_AT))
        probably_at = do.along(do("Where", alone, *limits), 1)
        named = self._name_concepts(things, vocabulary.concepts, probably_at)
        second = self._second(things, named, vocabulary.concepts)

        nothing = do.either(
            do.is_any(self._sort, NOTHING), do.both(in_drawing, do.is_any(count, 0))
        )
        blank = _Reading(*[self._blank] * 5)
        reading = self._first_match(
            (in_photo, alone, nothing),
            (
                self._read_photo(look.classes, whole, vocabulary),
                self._only(named, kept),
                blank._replace(certainty=do.index(UNCLEAR)),
                blank,
            ),
        )
        told = do.either(in_drawing, do("Greater", count, do.index(0)))
        number = do("Where", told, count, self._blank)
        self.of_picture = (*reading, self._sort, number, *self._word(word))
        self.of_things = self._slots(look, kept, alone, named, second)

    def _sort_of(self, look: LookNodes, word: WordNodes) -> str:
        do = self._do
        _, sort = do.likeliest(look.sorts)
        surest = do("ReduceMax", look.objectness, do.index([-1]), keepdims=0)
        of_things = do.both(
            do.is_any(sort, TEXT, CHART, NOTHING),
            do("Less", word.probability, do.number(WORD_CLEAR_AT)),
            do.at_least(surest, SURE_THING_AT),
        )
        return do("Where", of_things, do.index(THINGS), sort)

    def _seen_whole(self, look: LookNodes, things: str, whole: str, alone: str) -> str:
        """A lone thing's probabilities taken from the whole picture too, or only."""
        do = self._do
        large = do.at_least(self._area(look), LARGE_FROM)
        share = do("Where", large, do.number(1), do.number(0.5))
        share = do.along(do("Where", alone, share, do.number(0)), 2)
        rest = do("Sub", do.number(1), share)
        return do("Add", do("Mul", share, whole), do("Mul", rest, things))

    def _agreed(self, things: str, kept: str) -> str:
        """Kept things that look alike share the mean of their probabilities."""
        do = self._do
        squares = do("ReduceSum", do("Mul", things, things), do.index([-1]))
        unit = do("Div", things, do("Sqrt", squares))
        cosines = do("MatMul", unit, do("Transpose", unit, perm=[0, 2, 1]))
        both = do.both(do.along(kept, 1), do.along(kept, 2), do.at_least(cosines, ALIKE_FROM))
        itself = do("Cast", do.index(np.eye(MAX_THINGS)), to=TensorProto.BOOL)
        alike = do("Cast", do.either(both, itself), to=FLOAT)
        shares = do("Div", alike, do("ReduceSum", alike, do.index([-1])))
        return do("MatMul", shares, things)

    def _area(self, look: LookNodes) -> str:
        do = self._do
        x0, y0, x1, y1 = self._sides(look)
        return do("Mul", do("Sub", x1, x0), do("Sub", y1, y0))

    def _sides(self, look: LookNodes) -> tuple[str, ...]:
        do = self._do
        return tuple(do("Gather", look.boxes, do.index(i), axis=-1) for i in range(4))

    def _kept(
        self, look: LookNodes, whole: str, things: str, in_drawing: str, in_photo: str
    ) -> str:
        do = self._do
        sure = do.at_least(look.objectness, THING_AT)
        none = do("Equal", do.count(sure), do.index(0))
        named = do.at_least(do.likeliest(whole)[0], LONE_PROBABLY_AT)
        first = do("Cast", do.index(np.arange(MAX_THINGS) == 0), to=TensorProto.BOOL)
        drawn = do.either(sure, do.both(do.along(do.both(none, named), 1), first))
        drawn = do.both(drawn, do("Not", self._is_part(look, drawn)))
        certain = do.at_least(do.likeliest(things)[0], NAME_IN_PHOTO_AT)
        in_photos = do.both(certain, do.at_least(look.objectness, THING_IN_PHOTO_AT))
        return do.either(
            do.both(do.along(in_drawing, 1), drawn), do.both(do.along(in_photo, 1), in_photos)
        )

    def _is_part(self, look: LookNodes, kept: str) -> str:
        do, zero = self._do, self._do.number(0)
        sides, areas = self._sides(look), self._area(look)
        largest = do("ArgMax", do("Where", kept, areas, zero), axis=-1, keepdims=1)

        def of_largest(values: str) -> str:
            return do("GatherElements", values, largest, axis=-1)

        def common(low: str, high: str) -> str:
            end = do("Min", high, of_largest(high))
            return do("Max", do("Sub", end, do("Max", low, of_largest(low))), zero)

        x0, y0, x1, y1 = sides
        shared = do("Mul", common(x0, x1), common(y0, y1))
        least = do("Mul", do("Min", areas, of_largest(areas)), do.number(PART_FROM))
        itself = do("Equal", do.index(np.arange(MAX_THINGS)), largest)
        large = do.at_least(
            do("ReduceMax", do("Where", kept, areas, zero), do.index([-1])), LARGE_FROM
        )
        return do.both(do("GreaterOrEqual", shared, least), do("Not", itself), large)

    def _read_photo(self, classes: str, whole: str, vocabulary: Vocabulary) -> _Reading:
        do = self._do
        described = self._describe(do("Softmax", classes, axis=-1), vocabulary)
        top, best = do.likeliest(whole)
        of_concepts = self._name_concepts(
            whole, vocabulary.concepts, do.number(CONCEPT_PROBABLY_AT)
        )
        better = do.both(
            do("Not", do.is_any(described.certainty, CLEAR)),
            do.at_least(top, CONCEPT_IN_PHOTO_AT),
            do("Equal", do("Gather", do.index(is_shape(vocabulary) * 1), best), do.index(0)),
        )
        return self._first_match((better,), (of_concepts, described))

    def _second(self, things: str, named: _Reading, table: Table) -> str:
        """What else things may be."""
        do = self._do
        values, indices = self._graph.nodes("TopK", things, do.index([2]), n_outputs=2, axis=-1)
        concepts = do("Gather", do.index(table.rows), indices)
        (best, other), (top, runner_up) = (
            [do("Gather", pair, do.index(i), axis=-1) for i in (0, 1)]
            for pair in (concepts, values)
        )
        is_best = do("Equal", named.name, best)
        said = do.at_least(do("Where", is_best, runner_up, top), SECOND_AT)
        return do("Where", said, do("Where", is_best, other, best), self._blank)

    def _describe(self, probabilities: str, vocabulary: Vocabulary) -> _Reading:
        do, blank = self._do, self._blank
        classes = np.arange(len(vocabulary.kind_of))
        table = Table(classes, vocabulary.kind_of, vocabulary.broad_of)
        values, indices = self._graph.nodes(
            "TopK", probabilities, do.index([2]), n_outputs=2, axis=-1
        )
        top, second = (do("Gather", values, do.index(i), axis=-1) for i in (0, 1))
        best, rival = (do("Gather", indices, do.index(i), axis=-1) for i in (0, 1))
        kind, kind_mass = self._group(probabilities, best, table, table.kind_of)
        broad, broad_mass = self._group(probabilities, best, table, table.broad_of)
        close = do("GreaterOrEqual", second, do("Mul", top, do.number(RIVAL)))
        conditions = (
            do.both(do.at_least(top, NAME_AT), do("Not", close)),
            do.at_least(kind_mass, KIND_AT),
            do.both(close, do.at_least(do("Add", top, second), NAME_AT)),
            do.at_least(top, PROBABLY_AT),
            do.at_least(broad_mass, BROAD_AT),
        )
        certainties = (CLEAR, CLEAR, EITHER, PROBABLY, PROBABLY, UNCLEAR)
        fields = (
            tuple(do.index(certainty) for certainty in certainties),
            (best, kind, best, best, broad, blank),
            (blank, blank, rival, blank, blank, blank),
            (kind, kind, blank, kind, blank, blank),
            (broad, broad, blank, broad, broad, blank),
        )
        return _Reading(*(do.first_match(conditions, field) for field in fields))

    def _name_concepts(self, probabilities: str, table: Table, probably_at: str) -> _Reading:
        do, blank = self._do, self._blank
        top, best = do.likeliest(probabilities)
        name = do("Gather", do.index(table.rows), best)
        kind, kind_mass = self._group(probabilities, best, table, table.kind_of)
        broad, broad_mass = self._group(probabilities, best, table, table.broad_of)
        limits = (do.number(CONCEPT_CLEAR_AT), probably_at)
        conditions = (
            *(do("GreaterOrEqual", mass, at) for mass in (top, kind_mass) for at in limits),
            do.at_least(broad_mass, BROAD_AT),
        )
        certainties = (CLEAR, PROBABLY, CLEAR, PROBABLY, PROBABLY, UNCLEAR)
        fields = (
            tuple(do.index(certainty) for certainty in certainties),
            (name, name, kind, kind, broad, blank),
            [blank] * 6,
            (kind, kind, kind, kind, blank, blank),
            (broad, broad, broad, broad, broad, blank),
        )
        return _Reading(*(do.first_match(conditions, field) for field in fields))

    def _group(
        self, probabilities: str, best: str, table: Table, group_of: Rows
    ) -> tuple[str, str]:
        """The group of `best`, and the summed probability of what is in it or called as it is."""
        do = self._do
        groups = do.index(group_of)
        group = do("Gather", groups, best)
        wanted = do.along(group, -1)
        members = do.either(do("Equal", groups, wanted), do("Equal", do.index(table.rows), wanted))
        mass = do.total(probabilities, members)
        exists = do("GreaterOrEqual", group, do.index(0))
        return group, do("Where", exists, mass, do.number(0))

    def _word(self, word: WordNodes) -> tuple[str, str]:
        do, p = self._do, word.probability
        expected = do.is_any(self._sort, TEXT, CHART)
        stray = do.both(do.is_any(self._sort, PHOTO, THINGS), do.at_least(p, STRAY_WORD_AT))
        conditions = (
            do.either(stray, do.both(expected, do.at_least(p, WORD_CLEAR_AT))),
            do.both(expected, do.at_least(p, WORD_PROBABLY_AT)),
        )
        certainties = (do.index(CLEAR), do.index(PROBABLY), self._blank)
        rows = (word.row, word.row, self._blank)
        return do.first_match(conditions, certainties), do.first_match(conditions, rows)

    def _surfaces(self, look: LookNodes, alone: str) -> str:
        """The surfaces [n, 5] of things."""
        do = self._do
        surfaces = do("Softmax", look.thing_surfaces, axis=-1)
        surfaces = do("Gather", surfaces, do.index(np.arange(len(SURFACES))), axis=-1)
        probability, best = do.likeliest(surfaces)
        told = do("Gather", look.thing_surfaces, do.index(np.arange(len(SURFACES))), axis=-1)
        top = do.likeliest(told)[0]

        def leads(surface: int, at: float) -> str:
            """Whether the likeliest is so far before this one."""
            logit = do("Gather", told, do.index(surface), axis=-1)
            return do.at_least(do("Sub", top, logit), at)

        brown = do.both(
            do.is_any(best, RED),
            do.along(alone, 1),
            do("Not", leads(BROWN, BROWN_TO_RED)),
            *(leads(other, BROWN_FROM_OTHERS) for other in (ORANGE, PINK)),
        )
        teal = do.both(
            do.is_any(best, BLUE),
            do("Not", leads(GREEN, TEAL_TO_GREEN)),
            leads(PURPLE, TEAL_FROM_PURPLE),
        )
        one_colour = do.both(do.at_least(probability, SURFACE_AT), do("Not", teal))
        return do("Where", one_colour, do("Where", brown, do.index(BROWN), best), self._blank)

    def _slots(
        self, look: LookNodes, kept: str, alone: str, named: _Reading, second: str
    ) -> list[str]:
        """The fields of `Slot`s [n, 5], from left to right and then blank."""
        do = self._do
        x0, y0, x1, y1 = self._sides(look)
        centre_x, centre_y = (
            do("Mul", do("Add", low, high), do.number(0.5)) for low, high in ((x0, x1), (y0, y1))
        )
        others = do.along(kept, 1)
        names = [do.along(named.name, axis) for axis in (1, 2)]
        sooner = do("Cast", do.index(np.tri(MAX_THINGS, k=-1)), to=TensorProto.BOOL)

        def before(places: str) -> str:
            """How many of the others come before each along an axis."""
            pair = [do.along(places, axis) for axis in (1, 2)]
            first = do.either(do("Less", *pair), do.both(do("Equal", *pair), sooner))
            return do.count(do.both(others, first))

        clear = do.is_any(named.certainty, CLEAR)
        fields = (
            do("Where", clear, do.index(CLEAR), do.index(PROBABLY)),
            do.count(do.both(others, do("Equal", *names))),
            self._surfaces(look, alone),
            named.name,
            second,
            do.steps_passed(centre_y, PLACE_EDGES),
            do.steps_passed(centre_x, PLACE_EDGES),
            before(centre_x),
            before(centre_y),
            do.steps_passed(self._area(look), SIZE_EDGES),
        )
        at_last = do("Where", kept, centre_x, do.number(np.inf))
        _, order = self._graph.nodes(
            "TopK", at_last, do.index([MAX_THINGS]), n_outputs=2, axis=-1, largest=0
        )
        said = (do("Where", kept, field, self._blank) for field in fields)
        return [do("GatherElements", field, order, axis=-1) for field in said]

    def _only(self, named: _Reading, kept: str) -> _Reading:
        """Of the things' readings [n, 5] the kept one's [n]."""
        do = self._do
        place = do("ArgMax", do("Cast", kept, to=TensorProto.INT32), axis=-1, keepdims=1)
        return _Reading(
            *(
                do("Squeeze", do("GatherElements", field, place, axis=-1), do.index([-1]))
                for field in named
            )
        )

    def _first_match(self, conditions: Sequence[str], readings: Sequence[_Reading]) -> _Reading:
        fields = zip(*readings, strict=True)
        return _Reading(*(self._do.first_match(conditions, field) for field in fields))

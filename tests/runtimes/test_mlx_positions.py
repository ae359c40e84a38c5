"""Positions of rows around pictures that have positions of their own."""

from __future__ import annotations

import numpy as np

from edgevlm.engine.contract import Part
from edgevlm.engine.prompt import Block, BlockEmbeddings
from edgevlm.runtimes.mlx_positions import Positions


def ids(count: int) -> Part:
    return np.zeros(count, np.int64)


def picture(rows: int, columns: int) -> BlockEmbeddings:
    positions = np.indices((1, rows, columns), np.int32).reshape(3, -1).T
    block = Block(max(rows, columns), positions)
    return BlockEmbeddings(np.zeros((rows * columns, 4), np.float32), block)


def test_text_counts_alike_in_all_three() -> None:
    found = Positions().rows(2, 5)
    assert found.dtype == np.int32
    assert found.tolist() == [[2, 3, 4]] * 3


def test_a_picture_moves_what_follows_by_its_span() -> None:
    positions = Positions()
    positions.extend(0, [ids(2), picture(2, 3), ids(2)])
    assert positions.rows(0, 10).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_rows_do_not_depend_on_where_a_run_starts() -> None:
    positions = Positions()
    positions.extend(0, [ids(2), picture(2, 3), ids(1), picture(4, 1)])
    positions.extend(13, [ids(2)])
    whole = positions.rows(0, 15)
    # The second picture begins at 6 and is 4 long.
    assert whole[:, 9].tolist() == [6, 6, 6]
    assert whole[:, 13].tolist() == [10, 10, 10]
    for start in range(15):
        np.testing.assert_array_equal(positions.rows(start, 15), whole[:, start:])


def test_a_cut_forgets_the_pictures_behind_it() -> None:
    positions = Positions()
    positions.extend(0, [ids(2), picture(2, 3), ids(1), picture(4, 1)])
    positions.truncate(9)
    positions.extend(9, [ids(3)])
    assert positions.rows(9, 12)[0].tolist() == [6, 7, 8]
    positions.truncate(2)
    assert positions.rows(2, 4)[0].tolist() == [2, 3]


def test_a_block_whose_rows_count_like_text() -> None:
    positions = Positions()
    rows = BlockEmbeddings(np.zeros((4, 2), np.float32), Block(span=4))
    positions.extend(0, [ids(1), rows, ids(1)])
    assert positions.rows(0, 6).tolist() == [[0, 1, 2, 3, 4, 5]] * 3

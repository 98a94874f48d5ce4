"""Structurally singular matrices: some rows share too few columns, whatever the values are."""

from __future__ import annotations

from itertools import pairwise

import torch

from ..._sparse.structure import Structure
from ..._sparse.triangle import arrangement_of

# So many rows and columns are named.
_MOST_NAMED = 5


def explain_structure(structure: Structure, triangle: str | None) -> str | None:
    """Why a matrix with this pattern is singular whatever its values are; None if it need not be.

    By Hall's theorem, either every row can be matched with a column of its own in which it has an
    entry, or some rows have entries in fewer columns than there are rows. Rows are matched one by
    one along augmenting paths. (I. S. Duff, "On algorithms for obtaining a maximum transversal",
    ACM Trans. Math. Softw. 7, 1981.)
    """
    return structure.remember(_explain, triangle)


def _explain(structure: Structure, triangle: str | None) -> str | None:
    arrangement, n = arrangement_of(structure, "full", triangle), structure.shape[0]
    crow, col = arrangement.crow.cpu().tolist(), arrangement.col.cpu().tolist()
    neighbours = [col[first:last] for first, last in pairwise(crow)]
    degree = torch.bincount(arrangement.col.cpu(), minlength=n).tolist()
    row_of = [-1] * n  # the row that is matched with each column
    unmatched = []
    for row in sorted(range(n), key=lambda row: len(neighbours[row])):
        free = [j for j in neighbours[row] if row_of[j] < 0]
        if row in free:
            row_of[row] = row
        elif free:  # few other rows want the column with the fewest entries
            row_of[min(free, key=degree.__getitem__)] = row
        else:
            unmatched.append(row)
    for row in unmatched:
        reached = _match(row, neighbours, row_of)
        if reached is not None:
            rows = sorted(structure.label(at) for at in [row, *(row_of[j] for j in reached)])
            columns = sorted(structure.label(at) for at in reached)
            return (
                f"the matrix is structurally singular, whatever its values are: the {len(rows)} "
                f"rows {_list(rows)} have entries in {len(columns)} columns only ({_list(columns)})"
            )
    return None


def _match(start: int, neighbours: list[list[int]], row_of: list[int]) -> list[int] | None:
    """Match a row by moving others to new columns; if that fails, return the columns it reached."""
    came_from: dict[int, int] = {}
    queue = [start]
    for row in queue:
        for col in neighbours[row]:
            if col in came_from:
                continue
            came_from[col] = row
            if row_of[col] >= 0:
                queue.append(row_of[col])
                continue
            free = col
            while True:  # exchange along the path
                row = came_from[free]
                following = next((j for j in neighbours[row] if row_of[j] == row), -1)
                row_of[free] = row
                if row == start:
                    return None
                free = following
    return list(came_from)


def _list(numbers: list[int]) -> str:
    named = ", ".join(map(str, numbers[:_MOST_NAMED]))
    return f"{named}, ..." if len(numbers) > _MOST_NAMED else named

"""Structurally singular matrices: whatever the values, some rows and columns cannot be matched."""

from __future__ import annotations

import torch

from .._sparse.structure import Structure
from .._sparse.triangle import arrangement_of

# So many rows and columns are named.
_MOST_NAMED = 5


def explain_structure(structure: Structure, triangle: str | None) -> str | None:
    """Why no values make this pattern regular; None if some do.

    A matrix is structurally singular if it has no n entries of which no two share a row or a
    column. (I. S. Duff, "On algorithms for obtaining a maximum transversal", ACM Trans. Math.
    Softw. 7, 1981.)
    """
    import numpy as np
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    arrangement, n = arrangement_of(structure, "full", triangle), structure.shape[0]
    ones = torch.ones(arrangement.nnz, dtype=torch.int8, device="cpu").numpy()
    indices = arrangement.col.cpu().numpy(), arrangement.crow.cpu().numpy()
    pattern = csr_matrix((ones, *indices), shape=(n, n))
    column_of_row = maximum_bipartite_matching(pattern, perm_type="column")
    rows = np.flatnonzero(column_of_row < 0)
    if not rows.size:
        return None
    columns = np.setdiff1d(np.arange(n), column_of_row)
    listed = (_list([structure.label(int(i)) for i in lines]) for lines in (rows, columns))
    return (
        "the matrix is structurally singular: whatever its values are, rows {} and columns {} "
        "cannot be matched ({} of {} can), so that "
        "no diagonal without zeros exists after any exchange of rows"
    ).format(*listed, n - rows.size, n)


def _list(numbers: list[int]) -> str:
    named = ", ".join(map(str, numbers[:_MOST_NAMED]))
    return f"{named}, ..." if len(numbers) > _MOST_NAMED else named

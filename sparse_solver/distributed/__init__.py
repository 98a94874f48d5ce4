"""Solve with a sparse matrix whose rows are distributed over the ranks of an MPI program.

Factors, right-hand sides, solutions and gradients are distributed as well::

    from mpi4py import MPI
    from sparse_solver.distributed import Pattern, all_sum, partition

    comm = MPI.COMM_WORLD
    mine = partition(shape, comm=comm)              # the rows of this rank, a range
    P = Pattern(rows, cols, shape, comm=comm)       # the entries in these rows, global indices
    x = P.solve(values, b)                          # values, b and x are shares of this rank
    all_sum(loss(x), comm=comm).backward()          # on every rank

Every call except `partition`, and every backward pass through the results, is collective: all
ranks make it, in the same order. If they do not, all of them raise `CollectiveError`, and an error
on one rank is raised on all. The factorisation is that of oneMKL's Parallel Direct Sparse Solver
for Clusters. Install it with ``pip install "sparse-solver[mpi]"`` (Linux on x86-64), and run a
program on four ranks with ``mpiexec -n 4 python script.py``.

This package may import every room that solving needs: `_torch`, `_sparse`, `_engines`, `_factor`,
`_solve` and `errors`. Start reading in `_pattern`, which has the public classes; `_collective` is
how ranks agree, `_halo_exchange` what they exchange, `_numeric` how they factor.
"""

from __future__ import annotations

from ._factorization import Factorization
from ._halo_exchange import partition
from ._mpi import MPI as _MPI  # noqa: F401 - raises an error if there is no MPI
from ._pattern import Pattern
from ._reductions import all_sum, replicate

__all__ = ["Factorization", "Pattern", "all_sum", "partition", "replicate"]

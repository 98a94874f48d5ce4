"""The same solve over MPI: rows are distributed over ranks, and so are factors, right-hand sides and gradients.

    from mpi4py import MPI
    from sparse_solver.distributed import Pattern, partition, sum

    mine = partition(shape, MPI.COMM_WORLD)                  # a range of rows
    P = Pattern(rows, cols, shape, comm=MPI.COMM_WORLD)      # the entries of these rows, with global indices
    x = P.solve(values, b)                                   # values, b and x: the share of this rank
    sum(loss(x)).backward()                                  # on every rank

Every call here, and every backward pass through its results, is collective: all ranks make it, in the same order. Where they
do not, all of them raise `CollectiveError`; and what is raised on one rank is raised on all. oneMKL's Parallel Direct Sparse
Solver for Clusters factors. ``pip install "sparse-solver[mpi]"``, and ``mpiexec -n 4 python script.py``.
"""

from __future__ import annotations

from ._halo_exchange import partition
from ._mpi import MPI as _MPI  # noqa: F401 - raises where there is no MPI
from ._pattern import Factorization, Pattern
from ._reductions import replicate, sum

__all__ = ["Factorization", "Pattern", "partition", "replicate", "sum"]

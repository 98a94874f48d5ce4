"""mpi4py, or an error that says what to install."""

from __future__ import annotations

from ..errors import EngineUnavailableError

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # the latter: there is no library of MPI
    raise EngineUnavailableError(
        f'sparse_solver.distributed needs MPI ({error}); pip install "sparse-solver[mpi]" brings mpi4py and MPICH for Linux',
        engine="cluster",
        hint='pip install "sparse-solver[mpi]"',
    ) from error

__all__ = ["MPI"]

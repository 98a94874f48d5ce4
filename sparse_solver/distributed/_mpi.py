"""mpi4py, or an error that says what to install."""

from __future__ import annotations

from ..errors import EngineUnavailableError

INSTALL = 'pip install "sparse-solver[mpi]"'

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI library
    raise EngineUnavailableError(
        f"sparse_solver.distributed needs MPI ({error}); {INSTALL} installs mpi4py, and MPICH on "
        f"Linux",
        engine="cluster",
        hint=INSTALL,
    ) from error

__all__ = ["INSTALL", "MPI"]

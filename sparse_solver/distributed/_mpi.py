"""mpi4py, or an error that says what to install."""

from __future__ import annotations

from ..errors import EngineUnavailableError

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI library
    install = 'pip install "sparse-solver[mpi]"'
    raise EngineUnavailableError(
        f"sparse_solver.distributed needs MPI ({error}); {install} installs mpi4py, and MPICH on "
        f"Linux",
        engine="cluster",
        hint=install,
    ) from error

__all__ = ["MPI"]

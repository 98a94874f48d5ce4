from __future__ import annotations

import inspect
import pickle

import pytest
import torch

import sparse_solver as ss
from sparse_solver import errors

CLASSES = [
    c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, ss.SparseSolverError)
]


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_carry_data_also_across_processes(cls: type[ss.SparseSolverError]) -> None:
    error = cls("what happened", row=3, engine="pardiso", hint="pip install mkl")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is cls
    assert str(twin) == "what happened"
    assert (twin.row, twin.engine, twin.hint) == (3, "pardiso", "pip install mkl")
    with pytest.raises(AttributeError, match="carries no 'column'"):
        _ = error.column
    assert cls is ss.SparseSolverError or getattr(ss, cls.__name__) is cls


def test_they_are_the_errors_that_a_caller_would_expect() -> None:
    assert issubclass(ss.ShapeError, ValueError)
    assert issubclass(ss.DtypeError, TypeError)
    assert issubclass(ss.IndexRangeError, IndexError)
    assert issubclass(ss.NotPositiveDefiniteError, torch.linalg.LinAlgError)
    assert issubclass(ss.SingularMatrixError, torch.linalg.LinAlgError)
    assert issubclass(ss.EngineUnavailableError, RuntimeError)

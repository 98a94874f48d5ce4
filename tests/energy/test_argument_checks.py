"""Wrong indices, constants, variables and terms, and the errors that name them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from energy_cases import EDGES, TRIANGLES, area

import sparse_solver as ss


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"summand": 3}, ss.OptionError, "function"),
        ({"indices": [[0, 1]]}, ss.ShapeError, "list"),
        ({"indices": torch.tensor([0, 1])}, ss.ShapeError, "terms, locals"),
        ({"indices": torch.tensor([[0.0, 1.0]])}, ss.IndexRangeError, "float32"),
        ({"indices": torch.empty(3, 0, dtype=torch.int64)}, ss.ShapeError, "vertex"),
        ({"indices": torch.tensor([[0, 7]])}, ss.IndexRangeError, "index 7"),
        ({"indices": torch.tensor([[-1, 0]])}, ss.IndexRangeError, "index -1"),
        ({"per_term": torch.ones(2)}, ss.ShapeError, r"per_term has shape \(2,\)"),
        ({"per_term": 3.0}, ss.LayoutError, "a constant in per_term is a float"),
        ({"per_variable": torch.ones(2)}, ss.ShapeError, r"per_variable has shape \(2,\)"),
        ({"per_variable": torch.tensor(2.0)}, ss.ShapeError, "per_variable"),
        ({"chunk_size": 0}, ss.OptionError, "chunk_size=0"),
        ({"shape": (7, 2, 1)}, ss.ShapeError, "vertices"),
        ({"shape": (8, 2)}, ss.ShapeError, r"\(8, 2\)"),
        ({"summand": lambda x, *c: x}, ss.ShapeError, "one term"),
        ({"summand": lambda x, *c: 0.0}, ss.ShapeError, "float"),
        ({"summand": lambda x, *c: x.sum().double()}, ss.DtypeError, "float64"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    given: dict[str, Any] = {"summand": lambda x, *c: x.sum(), "indices": EDGES} | arguments
    X = torch.ones(7, 2)
    for call in ("value", "gradient", "hessian_values"):
        with pytest.raises(error, match=text):
            getattr(ss.IndexedSum(**given), call)(X)


def test_what_is_wrong_with_variables_is_said() -> None:
    energy = ss.IndexedSum(area, TRIANGLES)
    with pytest.raises(ss.OptionError, match="shape="):
        _ = energy.pattern
    for X, error in (
        ([1.0], ss.LayoutError),
        (torch.ones(7, 2).to_sparse(), ss.LayoutError),
        (torch.ones(7, 2, dtype=torch.int64), ss.DtypeError),
        (torch.ones(7, 2, dtype=torch.complex64), ss.DtypeError),
        (torch.ones(7, 2, 1), ss.ShapeError),
        (torch.tensor(1.0), ss.ShapeError),
        (torch.ones(7, 2, device="meta"), ss.DeviceError),
    ):
        with pytest.raises(error):
            energy(X)
    energy(torch.ones(7, 2))
    with pytest.raises(ss.ShapeError, match=r"\(8, 2\)"):
        energy(torch.ones(8, 2))
    with pytest.raises(ss.OptionError, match="project='half'"):
        energy.hessian_values(torch.ones(7, 2), project="half")  # type: ignore[arg-type]


def test_parameters_are_exchanged_for_as_many_of_equal_shapes() -> None:
    c = torch.ones(3)
    energy = ss.IndexedSum(lambda x, c: c * x[0, 0], EDGES, per_term=c, shape=(7, 2))
    free = energy.restrict(torch.ones(7, 2), fixed=torch.tensor([0]))
    # More constants than terms would be used in part.
    for wrong in ((), (c, c), (torch.ones(4),), (torch.ones(3, 1),)):
        with pytest.raises(ss.ShapeError, match=r"expected \[\(3,\)\]"):
            energy.with_parameters(*wrong)
        with pytest.raises(ss.ShapeError, match=r"expected \[\(3,\), \(7, 2\)\]"):
            free.with_parameters(*wrong)
    with pytest.raises(ss.LayoutError, match="a parameter is a float"):
        energy.with_parameters(1.0)  # type: ignore[arg-type]

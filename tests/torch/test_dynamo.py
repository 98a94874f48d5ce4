"""Functions that torch.compile does not trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparse_solver._torch.dynamo import disable_dynamo


@disable_dynamo
def untraceable(x: Tensor, scale: float = 2.0) -> Tensor:
    """Multiply in NumPy."""
    return torch.from_numpy(x.detach().numpy() * scale)


def test_it_is_the_same_function() -> None:
    assert untraceable.__name__ == "untraceable"
    assert untraceable.__doc__ == "Multiply in NumPy."
    assert torch.equal(untraceable(torch.ones(2), scale=3.0), torch.full((2,), 3.0))


def test_compiled_code_breaks_its_graph_there() -> None:
    torch._dynamo.reset()
    run = torch.compile(lambda x: untraceable(x + 1) + 1, backend="eager")
    assert torch.equal(run(torch.ones(2)), torch.full((2,), 5.0))
    whole = torch.compile(lambda x: untraceable(x + 1), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="disable"):
        whole(torch.ones(2))
    torch._dynamo.reset()


def test_dynamo_is_imported_only_where_something_is_compiled(
    run_python: Callable[..., str],
) -> None:
    script = (
        "import sys, torch\n"
        "from sparse_solver._torch.dynamo import disable_dynamo\n"
        "disable_dynamo(torch.ones)(2)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert run_python(script).strip() == "False"

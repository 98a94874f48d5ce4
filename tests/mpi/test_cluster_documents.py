"""docs/cluster.md and the example state the truth."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from shares import COMM, whole

import sparse_solver as ss

ROOT = Path(__file__).parents[2]


def test_the_snippet() -> None:
    (snippet,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL
    )
    found: dict[str, torch.Tensor] = {}
    exec(compile(snippet, "docs/cluster.md", "exec"), found)
    rows, cols, values = (
        whole(found["rows"]),
        whole(found["cols"]),
        whole(found["values"]).requires_grad_(),
    )
    x = ss.Pattern(rows, cols, (1000, 1000)).solve(values, torch.ones(1000, dtype=torch.double))
    torch.testing.assert_close(whole(found["x"]), x.detach())
    (x**2).sum().backward()
    torch.testing.assert_close(whole(found["values"].grad), values.grad)


def test_the_distributed_conductivity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It compares itself with one process; its results do not depend on the ranks."""
    monkeypatch.setattr(sys, "argv", ["distributed_conductivity", "--side", "30", "--steps", "60"])
    path = ROOT / "examples" / "distributed_conductivity.py"
    monkeypatch.syspath_prepend(path.parent)  # as for a script
    specification = importlib.util.spec_from_file_location("distributed_conductivity", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.main()
    if COMM.rank == 0:
        line = capsys.readouterr().out
        loss, error = re.search(r"loss ([0-9.]+), .* logarithms ([0-9.]+)%", line).groups()
        assert float(loss) == pytest.approx(335.38, abs=0.01)
        assert float(error) == pytest.approx(17.51, abs=0.05)

"""Time the sparse Hessian of neo-Hookean triangles, with and without `IndexedSum`.

    python -m benchmarks.energies [--quick]

The plain way is vmap(hessian) of a triangle and a COO tensor, coalesced in every call. Both ways
are compared with each other first, then take turns on fresh positions. Times are medians in
milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from torch import Tensor

import sparse_solver as ss


def edges(x: Tensor) -> Tensor:
    return torch.stack((x[1] - x[0], x[2] - x[0]), 1)


def neo_hookean(x: Tensor, constants: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    inverse, area, mu, lam = constants
    F = edges(x) @ inverse
    # Not torch.linalg.det, of which vmap(hessian) is wrong.
    log_det = torch.log(F[0, 0] * F[1, 1] - F[0, 1] * F[1, 0])
    return area * (mu / 2 * (F.square().sum() - 2 - 2 * log_det) + lam / 2 * log_det**2)


class Sheet:
    """m-by-m vertices, numbered row by row or, like those of many meshes, in random order."""

    def __init__(self, m: int, shuffled: bool):
        at = torch.randperm(m * m) if shuffled else torch.arange(m * m)
        grid = at.reshape(m, m)
        corners = (grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:])
        a, b, c, d = (corner.reshape(-1) for corner in corners)
        self.triangles = torch.cat((torch.stack((a, b, c), 1), torch.stack((a, c, d), 1)))
        x, y = torch.meshgrid(torch.arange(m), torch.arange(m), indexing="ij")
        self.rest = torch.empty(m * m, 2, dtype=torch.double)
        self.rest[at] = torch.stack((x.reshape(-1), y.reshape(-1)), 1).double()
        rest = torch.func.vmap(edges)(self.rest[self.triangles])
        lame = torch.rand(2, len(self.triangles), dtype=torch.double) + 1
        self.constants = (torch.linalg.inv(rest), torch.linalg.det(rest) / 2, *lame)
        self.energy = ss.IndexedSum(neo_hookean, self.triangles, per_term=self.constants)

    def fresh(self) -> Tensor:
        return self.rest + 0.1 * torch.rand_like(self.rest)

    def ours(self, X: Tensor) -> Tensor:
        return self.energy.hessian(X)

    def plain(self, X: Tensor) -> Tensor:
        n = X.numel()
        numbers = (2 * self.triangles.unsqueeze(-1) + torch.arange(2)).reshape(-1, 6)
        each = torch.func.vmap(torch.func.hessian(neo_hookean))(X[self.triangles], self.constants)
        rows, cols = (numbers.unsqueeze(dim).expand(-1, 6, 6).reshape(-1) for dim in (2, 1))
        indices = torch.stack((rows, cols))
        return torch.sparse_coo_tensor(indices, each.reshape(-1), (n, n)).coalesce()


def difference(sheet: Sheet) -> float:
    """The difference of both Hessians, relative to the largest entry."""
    X = sheet.fresh()
    plain = sheet.plain(X)
    difference = (sheet.ours(X).to_sparse_coo() - plain).coalesce()
    return float(difference.values().abs().max() / plain.values().abs().max())


def measure(sheet: Sheet, rounds: int) -> dict[str, float]:
    """The median times of both Hessians, and of our gradient and energy."""
    ways = {
        "plain": sheet.plain,
        "ours": sheet.ours,
        "gradient": sheet.energy.gradient,
        "energy": sheet.energy.value,
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        X = sheet.fresh()
        for name, way in ways.items():
            started = time.perf_counter()
            way(X)
            samples[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(times) for name, times in samples.items()}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="small meshes")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*Sparse.*")
    torch.manual_seed(0)
    print("| triangles | plain Hessian | `energy.hessian` | plain / ours | gradient | energy |")
    print("|---|---|---|---|---|---|")
    for m in (5, 23) if arguments.quick else (71, 225, 500):
        for shuffled in (False, True):
            sheet = Sheet(m, shuffled)
            assert difference(sheet) < 1e-12
            found = measure(sheet, 3 if arguments.quick else 11)
            name = f"{len(sheet.triangles):,}{', shuffled' if shuffled else ''}"
            times = [f"{found[key]:.3g}" for key in ("plain", "ours", "gradient", "energy")]
            times.insert(2, f"{found['plain'] / found['ours']:.1f}")
            print(f"| {name} | {' | '.join(times)} |")


if __name__ == "__main__":
    main()

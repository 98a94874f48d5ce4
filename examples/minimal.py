"""Learn the edge weights of a graph: those in A(w) = I + L(w), from a solution x = A(w)⁻¹ b.

First n = 10, where dense torch can check the gradient; then n = 100,000, where a dense A would need
80 GB; and at last random graphs, whose factors would be nearly dense.
"""

from __future__ import annotations

import argparse
import time

import torch
from progress import show_progress
from torch import Tensor

import sparse_solver as ss


def laplacian_indices(edges: Tensor, n: int) -> Tensor:
    """(2, n + 4 edges) the places of `laplacian_values` in I + L, with duplicates."""
    i, j = edges
    nodes = torch.arange(n)
    return torch.stack([torch.cat([nodes, i, j, i, j]), torch.cat([nodes, j, i, i, j])])


def laplacian_values(w: Tensor, n: int) -> Tensor:
    """(n + 4 edges,) the values of I + L(w); values at the same place are to be summed."""
    return torch.cat([torch.ones(n, dtype=w.dtype), -w, -w, w, w])


def check_against_dense(n: int = 10) -> float:
    """The largest difference of the gradients of ½‖A(w)⁻¹ b‖² by a sparse and a dense solve."""
    edges = torch.unique(torch.randint(0, n, (n * 6, 2)), dim=0).T
    b = torch.ones(n, dtype=torch.double)
    w = torch.ones(edges.shape[1], dtype=torch.double, requires_grad=True)
    indices, values = laplacian_indices(edges, n), laplacian_values(w, n)

    A = torch.sparse_coo_tensor(indices, values, (n, n), check_invariants=True)
    (sparse,) = torch.autograd.grad((ss.solve(A, b) ** 2).sum() / 2, w, retain_graph=True)

    A = torch.zeros(n, n, dtype=torch.double).index_put(tuple(indices), values, accumulate=True)
    (dense,) = torch.autograd.grad((torch.linalg.solve(A, b) ** 2).sum() / 2, w)
    return float((sparse - dense).abs().max())


def ring_with_chords(n: int) -> Tensor:
    """(2, edges) a ring with n / 2 random chords, so short that the factor stays sparse."""
    i = torch.arange(n)
    start, length = torch.randint(0, n, (n // 2,)), torch.randint(2, 6, (n // 2,))
    return torch.stack([torch.cat([i, start]), torch.cat([(i + 1) % n, (start + length) % n])])


def random_graph(n: int) -> Tensor:
    """(2, edges) about six random edges for each node."""
    i, j = torch.unique(torch.randint(0, n, (n * 6, 2)), dim=0).T
    return torch.stack([i[i != j], j[i != j]])


def take_steps(n: int, steps: int = 3) -> tuple[float, str]:
    """The median of the milliseconds of a gradient on a random graph, and the engine."""
    edges, b = random_graph(n), torch.randn(n, dtype=torch.double)
    rows, cols = laplacian_indices(edges, n)
    pattern = ss.Pattern(rows, cols, (n, n))
    milliseconds: list[float] = []
    for _ in range(steps + 1):  # the first one prepares the pattern
        w = (0.5 + torch.rand(edges.shape[1], dtype=torch.double)).requires_grad_()
        start = time.perf_counter()
        x = pattern.solve(laplacian_values(w, n), b, assume="spd")
        (x**2).sum().backward()
        milliseconds.append(1e3 * (time.perf_counter() - start))
    F = pattern.factorize(laplacian_values(w.detach(), n), assume="spd")
    return sorted(milliseconds[1:])[steps // 2], F.info.engine


def learn(n: int, steps: int) -> tuple[list[float], list[float]]:
    """Run Adam on the logarithms of the weights; the loss and the milliseconds of each step."""
    edges, b = ring_with_chords(n), torch.randn(n, dtype=torch.double)
    rows, cols = laplacian_indices(edges, n)
    pattern = ss.Pattern(rows, cols, (n, n))  # analysed once, in the first solve

    def solve(theta: Tensor) -> Tensor:
        return pattern.solve(laplacian_values(theta.exp(), n), b, assume="spd")

    target = solve(torch.randn(edges.shape[1], dtype=torch.double))
    theta = torch.zeros(edges.shape[1], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    losses: list[float] = []
    milliseconds: list[float] = []
    with show_progress(f"n = {n:,}", steps) as report:
        for _ in range(steps):
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = ((solve(theta) - target) ** 2).sum()
            loss.backward()
            milliseconds.append(1e3 * (time.perf_counter() - start))
            optimizer.step()
            losses.append(loss.item())
            report(f"loss {losses[-1]:.1f}, {milliseconds[-1]:.1f} ms")
    return losses, milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100_000, help="nodes of the large graph")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="2,000 nodes")
    arguments = parser.parse_args()
    n = 2000 if arguments.quick else arguments.n
    torch.manual_seed(0)

    difference = check_against_dense()
    print(f"n = 10: the gradient differs from that of dense torch by {difference:.1e}")
    assert difference < 1e-12

    losses, milliseconds = learn(n, arguments.steps)
    median = sorted(milliseconds)[len(milliseconds) // 2]
    print(
        f"n = {n:,}: loss {losses[0]:.1f} -> {losses[-1]:.1f}; building the values, forward and "
        f"backward pass take {median:.1f} ms (median)"
    )
    assert losses[-1] < losses[0]

    for nodes in (n // 10, n):
        median, engine = take_steps(nodes)
        print(
            f"random graph, n = {nodes:,}: forward and backward pass take {median:.1f} ms (median, "
            f"engine {engine!r})"
        )


if __name__ == "__main__":
    main()

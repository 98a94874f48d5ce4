"""The graphs and meshes of the benchmarks: edges are (2, ·) tensors of nodes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def grid(*sides: int) -> tuple[Tensor, int]:
    """The edges of a grid of two or three dimensions, and the number of its nodes."""
    node = torch.arange(math.prod(sides)).reshape(sides)
    edges = []
    for axis in range(len(sides)):
        count = sides[axis] - 1
        pairs = (node.narrow(axis, 0, count), node.narrow(axis, 1, count))
        edges.append(torch.stack([nodes.reshape(-1) for nodes in pairs]))
    return torch.cat(edges, 1), node.numel()


def ring(n: int, chords: int = 0) -> tuple[Tensor, int]:
    """A ring with random chords over two to five nodes."""
    i = torch.arange(n)
    start, length = torch.randint(0, n, (chords,)), torch.randint(2, 6, (chords,))
    return torch.stack((torch.cat((i, start)), torch.cat(((i + 1) % n, (start + length) % n)))), n


def tree(n: int) -> tuple[Tensor, int]:
    child = torch.arange(1, n)
    return torch.stack((child, (torch.rand(n - 1) * child).long())), n


def band(n: int, width: int) -> tuple[Tensor, int]:
    i = torch.arange(n)
    pairs = [torch.stack((i[:-k], i[k:])) for k in range(1, width + 1)]
    return torch.cat(pairs, 1), n


def random(n: int, each: int) -> tuple[Tensor, int]:
    """`each` random edges per node, as in the README."""
    edges = torch.unique(torch.randint(0, n, (n * each, 2)), dim=0).T
    return edges[:, edges[0] != edges[1]], n


def torus(rings: int, segments: int) -> tuple[Tensor, Tensor]:
    """(vertices, 3) positions and (triangles, 3) corners of a torus with bumps."""
    i, j = torch.meshgrid(torch.arange(rings), torch.arange(segments), indexing="ij")
    u, v = 2 * math.pi * i / rings, 2 * math.pi * j / segments
    noise = 0.05 * torch.rand(rings, segments) / max(rings, segments)
    radius = 1 + 0.2 * torch.sin(5 * u) * torch.cos(3 * v) + noise
    around = 3 + radius * torch.cos(v)
    coordinates = (around * torch.cos(u), around * torch.sin(u), radius * torch.sin(v))
    positions = torch.stack(coordinates, -1).reshape(-1, 3).double()

    def vertex(i: Tensor, j: Tensor) -> Tensor:
        return (i % rings) * segments + j % segments

    lower = torch.stack((vertex(i, j), vertex(i + 1, j), vertex(i + 1, j + 1)), -1)
    upper = torch.stack((vertex(i, j), vertex(i + 1, j + 1), vertex(i, j + 1)), -1)
    return positions, torch.cat((lower.reshape(-1, 3), upper.reshape(-1, 3)))


def cotangent_weights(positions: Tensor, triangles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(2, edges), their cotangent weights, and (vertices,) lumped masses of a triangle mesh.

    The weight of an edge is ½ (cot α + cot β), with the opposite angles α and β (M. Meyer,
    M. Desbrun, P. Schröder, A. H. Barr, "Discrete differential-geometry operators for triangulated
    2-manifolds", 2003).
    """
    corners = positions[triangles]
    edges, weights = [], []
    for k in range(3):
        apex, a, b = corners[:, k], corners[:, (k + 1) % 3], corners[:, (k + 2) % 3]
        cross = torch.linalg.cross(a - apex, b - apex)
        cotangent = ((a - apex) * (b - apex)).sum(-1) / torch.linalg.vector_norm(cross, dim=-1)
        weights.append(cotangent / 2)
        edges.append(torch.stack((triangles[:, (k + 1) % 3], triangles[:, (k + 2) % 3])))
    area = torch.linalg.vector_norm(cross, dim=-1) / 2
    masses = torch.zeros(len(positions), dtype=torch.float64)
    for k in range(3):
        masses.index_add_(0, triangles[:, k], area / 3)
    halves = torch.cat(edges, 1).sort(0)[0]  # each edge once for each of its two triangles
    unique, edge = torch.unique(halves, dim=1, return_inverse=True)
    zeros = torch.zeros(unique.shape[1], dtype=torch.float64)
    return unique, zeros.index_add_(0, edge, torch.cat(weights)), masses

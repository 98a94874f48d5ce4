"""Matrices that packages ship, as kinds, for the packages that are installed.

They belong to the long run: `make stress` installs the packages.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp

from tests.contract.matrix_kinds import COMPLEX, Draw, Matrix, kind

# Networks of 4 to 1354 nodes; each power flow takes a second.
NETWORKS = (
    "case4gs", "case9", "case14", "case30", "case39", "case57", "case118", "case145", "case300",
    "case1354pegase", "case_illinois200", "iceland",
)  # fmt: skip

LARGEST_EXAMPLE = 1500


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def only_with(package: str) -> Callable[..., Any]:
    """`kind`, if the package is installed, else nothing."""
    return kind if is_installed(package) else lambda *_, **__: lambda make: make


scipy_kind, pyamg_kind = only_with("scipy"), only_with("pyamg")
skfem_kind, pandapower_kind = only_with("skfem"), only_with("pandapower")


@scipy_kind(largest=400)
def scipy_special(draw: Draw) -> Matrix:
    """Dense matrices of scipy.linalg."""
    n = draw.n
    column, row = draw.rng.standard_normal((2, n))
    return draw.choice(
        lambda: la.fiedler(column),
        lambda: la.toeplitz(column, row),
        lambda: la.hankel(column, row),
        lambda: la.circulant(column),
        lambda: la.leslie(abs(row), abs(column[: n - 1])),
        lambda: la.pascal(min(n, 16), exact=False).astype(float),
        lambda: la.helmert(n, full=True),
    )()


@scipy_kind(dtypes=COMPLEX, largest=400)
def scipy_fourier(draw: Draw) -> Matrix:
    return la.dft(draw.n)


@scipy_kind("symmetric")
def scipy_mikota_pair(draw: Draw) -> Matrix:
    """The stiffness of a vibrating chain minus a multiple of its mass, between eigenvalues."""
    n = min(draw.n, 400)
    i = np.arange(1, n + 1.0)
    stiffness = sp.diags([2 * np.flip(i) - 1, -np.flip(i)[1:], -np.flip(i)[1:]], [0, 1, -1])
    return stiffness - (draw.rng.integers(1, n) + draw.rng.uniform(0.2, 0.8)) ** 2 * sp.diags(1 / i)


# PyAMG


def _example(name: str) -> Callable[[Draw], Matrix]:
    def make(draw: Draw) -> Matrix:
        from pyamg.gallery import load_example

        A = sp.csr_matrix(load_example(name)["A"])
        return A[:LARGEST_EXAMPLE, :LARGEST_EXAMPLE]  # zero values at the other nodes

    make.__name__ = f"pyamg_{name}"
    return make


for _name, _symmetry in (
    ("airfoil", "symmetric"), ("bar", "symmetric"), ("knot", "symmetric"),
    ("unit_cube", "symmetric"), ("recirc_flow", "general"),
    ("local_disc_galerkin_diffusion", "symmetric"),
):  # fmt: skip
    pyamg_kind(_symmetry)(_example(_name))
pyamg_kind("symmetric", singular=True)(_example("unit_square"))  # free on the whole boundary
pyamg_kind("symmetric", dtypes=COMPLEX)(_example("helmholtz_2D"))


@pyamg_kind("spd")
def pyamg_poisson(draw: Draw) -> Matrix:
    from pyamg.gallery import poisson

    d = draw.rng.integers(1, 4)
    return poisson((max(2, round(draw.n ** (1 / d))),) * int(d))


@pyamg_kind("spd")
def pyamg_elasticity(draw: Draw) -> Matrix:
    from pyamg.gallery import linear_elasticity

    side = max(3, round((draw.n / 2) ** 0.5))
    return linear_elasticity((side, side), E=draw.decades(0, 7), nu=draw.choice(0.3, 0.49))[0]


@pyamg_kind("symmetric")
def pyamg_diffusion(draw: Draw) -> Matrix:
    """Diffusion with an anisotropy down to 1e-8, rotated."""
    from pyamg.gallery import stencil_grid
    from pyamg.gallery.diffusion import diffusion_stencil_2d

    stencil = diffusion_stencil_2d(
        epsilon=draw.decades(-8, 0), theta=draw.rng.uniform(0, 3), type=draw.choice("FE", "FD")
    )
    return stencil_grid(stencil, (draw.side,) * 2)


@pyamg_kind("hermitian", dtypes=COMPLEX)
def pyamg_gauge_laplacian(draw: Draw) -> Matrix:
    from pyamg.gallery import gauge_laplacian

    state = np.random.get_state()  # noqa: NPY002  # the gallery draws from the global generator
    np.random.seed(draw.rng.integers(2**31))  # noqa: NPY002
    try:
        return gauge_laplacian(max(3, draw.side), beta=draw.rng.uniform(0, 0.5))
    finally:
        np.random.set_state(state)  # noqa: NPY002


@pyamg_kind()
def pyamg_advection(draw: Draw) -> Matrix:
    from pyamg.gallery import advection_2d

    side = max(3, draw.side)
    return advection_2d((side, side), theta=draw.rng.uniform(0.1, 1.4))[0]


# scikit-fem


@skfem_kind("symmetric")
def skfem_helmholtz(draw: Draw) -> Matrix:
    """Linear or quadratic triangles, K - k² M."""
    import skfem
    from skfem.models.poisson import laplace, mass

    mesh = skfem.MeshTri.init_tensor(*[np.linspace(0, 1, max(3, draw.side // 2))] * 2)
    basis = skfem.Basis(mesh, draw.choice(skfem.ElementTriP1(), skfem.ElementTriP2()))
    A = laplace.assemble(basis) - draw.rng.uniform(0, 900) * mass.assemble(basis)
    keep = basis.complement_dofs(basis.get_dofs())
    return A[keep][:, keep]


@skfem_kind("symmetric")
def skfem_stokes(draw: Draw) -> Matrix:
    """Taylor–Hood elements in a cavity; one pressure is fixed."""
    import skfem
    from skfem.models.general import divergence
    from skfem.models.poisson import vector_laplace

    mesh = skfem.MeshTri.init_tensor(*[np.linspace(0, 1, max(3, draw.side // 3))] * 2)
    velocity = skfem.Basis(mesh, skfem.ElementVector(skfem.ElementTriP2()), intorder=4)
    pressure = velocity.with_element(skfem.ElementTriP1())
    K = draw.decades(-3, 3) * skfem.asm(vector_laplace, velocity)
    B = -skfem.asm(divergence, velocity, pressure)
    keep = velocity.complement_dofs(velocity.get_dofs())
    B = B[1:, keep]
    return sp.bmat([[K[keep][:, keep], B.T], [B, None]])


@skfem_kind("symmetric")
def skfem_maxwell(draw: Draw) -> Matrix:
    """curl curl E - k² E with edge elements: gradients belong to -k²."""
    import skfem
    from skfem.helpers import curl, dot

    mesh = skfem.MeshTri.init_tensor(*[np.linspace(0, 1, max(3, draw.side // 2))] * 2)
    basis = skfem.Basis(mesh, skfem.ElementTriN1())
    stiffness = skfem.BilinearForm(lambda u, v, w: curl(u) * curl(v)).assemble(basis)
    mass = skfem.BilinearForm(lambda u, v, w: dot(u, v)).assemble(basis)
    return stiffness - draw.decades(-6, 3) * mass


@skfem_kind("symmetric")
def skfem_plate(draw: Draw) -> Matrix:
    """A clamped plate of Morley elements."""
    import skfem
    from skfem.helpers import dd, ddot

    mesh = skfem.MeshTri.init_tensor(*[np.linspace(0, 1, max(3, draw.side // 2))] * 2)
    basis = skfem.Basis(mesh, skfem.ElementTriMorley())
    A = skfem.BilinearForm(lambda u, v, w: ddot(dd(u), dd(v))).assemble(basis)
    keep = basis.complement_dofs(basis.get_dofs())
    return A[keep][:, keep]


@skfem_kind("symmetric", singular=True)
def skfem_free_body(draw: Draw) -> Matrix:
    """Elasticity without supports: three rigid motions."""
    import skfem
    from skfem.models.elasticity import lame_parameters, linear_elasticity

    mesh = skfem.MeshQuad.init_tensor(*[np.linspace(0, 1, max(3, draw.side // 2))] * 2)
    basis = skfem.Basis(mesh, skfem.ElementVector(skfem.ElementQuad1()))
    return linear_elasticity(*lame_parameters(1.0, 0.3)).assemble(basis)


# pandapower


@cache
def _power_flow(name: str) -> tuple[Matrix, Matrix]:
    """The admittances and the Jacobian of a network."""
    import pandapower
    from pandapower import networks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = getattr(networks, name)()
        pandapower.runpp(net, numba=False)
    internal = net._ppc["internal"]
    return sp.csr_matrix(internal["Ybus"]), sp.csr_matrix(internal["J"])


@pandapower_kind(dtypes=COMPLEX)
def pandapower_admittances(draw: Draw) -> Matrix:
    """With all buses, which may be singular, or without the first."""
    Y = _power_flow(draw.choice(*NETWORKS))[0]
    return Y[1:, 1:] if draw.rng.random() < 0.7 else Y


@pandapower_kind()
def pandapower_jacobian(draw: Draw) -> Matrix:
    return _power_flow(draw.choice(*NETWORKS))[1]

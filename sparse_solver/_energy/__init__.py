"""Energies that are sums of small terms, with their gradients and sparse Hessians.

It may import `_torch`, `_sparse`, `_engines`, `_factor`, `_solve` and `errors`. Start reading in
`indexed_sum`, which has the public class; `terms` evaluates and differentiates the terms,
`hessian_assembly` adds their Hessians, and `energy` says what `minimize` requires of an energy.
"""

"""Equality-constrained quadratic minimisation: the KKT matrix, its inertia, and what can be wrong.

It may import `_torch`, `_sparse`, `_engines`, `_factor`, `_solve` and `errors`. Start reading in
`program`, which has the public calls; `kkt` factors the matrix and explains failures, with the
help of `inertia` and `dependent_constraints`.
"""

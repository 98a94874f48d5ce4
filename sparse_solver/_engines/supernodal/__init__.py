"""A supernodal Cholesky factorisation in Numba, and what no library computes from its factor.

It may import what the engines may. Start reading in `factor`, which has the operations; `symbolic`
analyses a pattern, `primitives` explains fronts, and `elimination`, `inversion`, `perturbation`,
`reverse_cholesky` and `substitution` have the loops. Only `library` imports them, when they are
first used; `engine` is the engine.
"""

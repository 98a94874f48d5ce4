"""Gaussian fields: a supernodal Cholesky factor, the log-determinant and the selected inverse.

It may import what `_solve` may, and `_solve`. Start reading in `supernodal`, which factors a
matrix; `symbolic` analyses its pattern, and `kernels` has all loops, which Numba compiles.
"""

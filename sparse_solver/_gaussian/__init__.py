"""Gaussian fields: the differentiable log-determinant and selected inverse.

It may import what `_solve` may, and `_solve`. Start reading in `functions`, which has the
derivatives; `factors` owns the factors, and `methods` has what users call.
"""

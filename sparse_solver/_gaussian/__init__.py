"""Gaussian fields: the differentiable log-determinant and selected inverse.

It may import what `_solve` may, and `_solve`. Start reading in `functions`, which has the
derivatives; `factors` owns the factors, and `symmetric_inverse` is what `Pattern` offers. For
determinants of matrices of any kind, these are `determinant`, `determinant_factors` and `slogdet`.
The distribution is in `fields`.
"""

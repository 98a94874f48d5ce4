"""Sparse matrices as arrays: index structures, values, triangles, batches and products.

It may import `_torch` and `errors`. Start reading in `structure`, then `matrix`, which joins a
structure with its values; `kernels` has the product of which all derivatives are made.
"""

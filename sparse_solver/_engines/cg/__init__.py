"""Conjugate gradients with the guarantee of a direct method, in plain torch on any device.

`engine` has the engine, `iteration` the method, `nonsingularity` the proofs that a matrix is not
singular, and `products` the matrix in the form that is multiplied with. Start with `iteration`.
"""

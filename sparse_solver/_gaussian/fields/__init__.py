"""`GaussianField`, a distribution with a sparse precision, and what it consists of.

`covariance` applies the inverse of the precision, `constrained_covariance` under linear
constraints. Start reading in `gaussian_field`.
"""

"""One factorisation whose solutions are checked: kinds, accuracy, remedies, and who owns factors.

It may import `_torch`, `_sparse`, `_engines` and `errors`. Start reading in `factors`, which holds
the factorisations of one tensor of values; `ladder` makes one of them, `checked_factor` goes on to
the next one where `accuracy` finds solutions that are not good.
"""

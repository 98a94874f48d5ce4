"""One factorisation whose solutions are checked: options, ways to factor, and who owns factors.

It may import `_torch`, `_sparse`, `_engines` and `errors`. Start reading in `factors`, which holds
the factorisations of one tensor of values; `ladder` makes one of them, and `accuracy` judges it.
"""

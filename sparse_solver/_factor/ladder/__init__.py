"""The factorisation of one matrix: the kinds and methods to try, from the fastest on.

It may import `_torch`, `_sparse`, `_engines`, `errors`, and `accuracy` beside it. Start reading in
`ladder`; `fast_path` and `dense_path` are for matrices like the last one of their pattern.
"""

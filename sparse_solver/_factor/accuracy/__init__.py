"""How solutions are judged, and a factorisation that goes on to a better one where they fail.

It may import `_torch`, `_sparse`, `_engines` and `errors`. Start reading in `judge`, which has the
rules; `checked_factor` follows them.
"""

"""The libraries that factor sparse matrices, in one file or folder each, behind one protocol.

The room may import `_torch`, `_sparse` and `errors`. Start reading in `protocol`, which says what
an engine is; `registry` lists the engines, `select` chooses among them, and `analysis` remembers
their analyses of a pattern.
"""

"""The libraries that factor sparse matrices, one file or folder each, behind one protocol.

It may import `_torch`, `_sparse` and `errors`. Start reading in `protocol`, which says what an
engine is; `registry` lists the engines, `select` chooses among them, and `analysis` remembers what
they found out about a pattern. Nothing outside of this folder knows what an engine is called.
"""

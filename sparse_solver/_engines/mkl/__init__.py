"""oneMKL PARDISO through ctypes.

Start reading in `pardiso`, the engine; `handle` owns the native memory, `parameters` has the
settings, which the solver for clusters shares, and `library` finds and loads oneMKL. The folder
imports what its room may import.
"""

"""Newton's method for minima and roots, and the derivatives of what it finds.

It may import `_torch`, `_sparse`, `_engines`, `_factor`, `_solve`, `_energy` and `errors`. Start
reading in `find_root`, the simpler of the two methods; `minimize` with the folder `newton` is the
other one, and `implicit_diff` makes the results of both differentiable.
"""

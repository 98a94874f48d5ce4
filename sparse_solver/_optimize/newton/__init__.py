"""Newton's method for energies: steps, line search, saddle points, and when to stop.

It may import what `_optimize` may. Start reading in `newton_minimizer`.
"""

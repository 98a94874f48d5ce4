"""The terms of an energy: their values and derivatives, for all elements at once.

It may import what `_energy` may. Start reading in `element_terms`.
"""

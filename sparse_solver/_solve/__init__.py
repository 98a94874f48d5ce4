"""The differentiable solve: formulas of its derivatives, torch's interfaces, and the public calls.

It may import `_torch`, `_sparse`, `_engines`, `_factor` and `errors`. Start reading in `adjoint`,
which has the formulas once; `autograd` and `compile` give them to torch, `shapes` validates, and
`pattern`, `factorization` and `functional` are what users call.
"""

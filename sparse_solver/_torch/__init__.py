"""What torch needs to be told: modes and transforms, compilation, locks and caches.

It imports nothing of the package. Start reading in `modes`, which tells what torch is doing to
the tensors of a call.
"""

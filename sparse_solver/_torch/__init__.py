"""The interplay with torch: modes and transforms, compilation, locks and caches.

It imports nothing of the package. Start reading in `modes`, which says whether torch
records, transforms or only computes with the tensors of a call.
"""

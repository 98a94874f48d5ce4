"""NVIDIA cuDSS through ctypes.

Start reading in `engine`; `workspace` owns the analyses and factors on the device, `handle` the
memory and the streams that they share, and `library` finds and loads cuDSS. The folder imports what
its room may import.
"""

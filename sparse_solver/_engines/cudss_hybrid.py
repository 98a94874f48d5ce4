"""cuDSS with the factor in the memory of the device and of the host, for those that the device has no room for."""

from __future__ import annotations

from .cudss import Cudss

ENGINE = Cudss("cudss_hybrid", hybrid=True)

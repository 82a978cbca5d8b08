"""What this process has used of the machine."""

from __future__ import annotations

import resource
import sys


def peak_memory() -> int:
    """The most memory that this process has had so far, resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

"""What this machine has, and what this process has used of it."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def peak_memory(children: bool = False) -> int:
    """The most memory that this process has had so far, resident, in bytes.

    Args:
        children: or one of the processes that it has started and that have ended.
    """
    who = [resource.RUSAGE_SELF, *([resource.RUSAGE_CHILDREN] if children else [])]
    peak = max(resource.getrusage(one).ru_maxrss for one in who)
    return peak if sys.platform == "darwin" else 1024 * peak


def total_memory() -> int:
    """The memory of this machine, or of the container that this process is in, in bytes."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    return min(installed, int(allowed)) if allowed.isdecimal() else installed

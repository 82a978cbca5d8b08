"""What this machine has, what this process has used of it, how its threads wait, and what becomes of freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

PASSIVE = {
    "OMP_WAIT_POLICY": "PASSIVE",  # every OpenMP runtime; libgomp, which torch brings on Linux, then spins not at all
    "GOMP_SPINCOUNT": "0",  # libgomp
    "KMP_BLOCKTIME": "0",  # the runtimes of LLVM and Intel: milliseconds
}

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # torch's: tensors of 2 MiB and more begin at a page, and may have huge ones
KEPT = {  # parameters of glibc's malloc.h, and their values
    -3: 2**25,  # M_MMAP_THRESHOLD, at its largest
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD, at its largest
    1: 0,  # M_MXFAST: what is cut off a block is joined with what is free beside it
}


def peak_memory(children: bool = False) -> int:
    """The most memory that this process has had so far, resident, in bytes.

    Args:
        children: or one of the processes that it has started and that have ended.
    """
    import resource  # here: Windows has none

    who = [resource.RUSAGE_SELF, *([resource.RUSAGE_CHILDREN] if children else [])]
    peak = max(resource.getrusage(one).ru_maxrss for one in who)
    return peak if sys.platform == "darwin" else 1024 * peak


def cores() -> int:
    """CPU cores that this process may use: those of its affinity, or fewer where its container has a quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = limit.read_text().strip().partition(" ") if limit.is_file() else ("max", "", "")
    return max(1, min(allowed, int(quota) // int(period))) if quota.isdecimal() and period.isdecimal() else allowed


def available_memory() -> int:
    """The memory that a new process could have now, in bytes; where the system does not say, ``total_memory``."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([*free, total_memory()])


def total_memory() -> int:
    """The memory of this machine, or of the container that this process is in, in bytes."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    return min(installed, int(allowed)) if allowed.isdecimal() else installed


def set_environment() -> None:
    """Tell OpenMP that idle threads sleep, and torch to use large pages; what the environment says already stands.

    By default threads spin for a while. Where two processes share the cores, a thread spins in one while the other's
    that it waits for has no core: a run with two threads on two busy cores took 30 times as long. OpenMP reads this
    once, when torch is imported for the first time, and torch with the first large tensor. So a program that imports
    torch before capfl has to set them itself.
    """
    for name, value in {**PASSIVE, LARGE_PAGES: "1"}.items():
        os.environ.setdefault(name, value)


def keep_memory() -> None:
    """Have glibc keep freed tensors of up to 32 MiB for the next ones, instead of returning each to the system.

    A training step asks for several GB, piece by piece, and the system clears each page that it hands out: that took a
    third of a step on long texts. Does nothing where another library allocates, or where the environment says what
    glibc is to do.
    """
    said = os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"}
    if (glibc := _glibc()) and not said:
        for parameter, value in KEPT.items():
            glibc.mallopt(parameter, value)


def return_memory() -> None:
    """Have glibc return now what lies free between blocks in use, in pieces that are too small for the next tensors.

    Takes a millisecond, or a hundredth of a step on a long text. Does nothing where there is no glibc.
    """
    if glibc := _glibc():
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None

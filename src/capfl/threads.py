"""How threads that have nothing to do wait: asleep, so that another busy process gets the core."""

from __future__ import annotations

import os

PASSIVE = {
    "OMP_WAIT_POLICY": "PASSIVE",  # every OpenMP runtime; libgomp, which torch brings on Linux, then spins not at all
    "GOMP_SPINCOUNT": "0",  # libgomp
    "KMP_BLOCKTIME": "0",  # the runtimes of LLVM and Intel: milliseconds
}


def wait_passively() -> None:
    """Tell OpenMP that idle threads sleep; what the environment says already stands.

    By default they spin for a while. Where two processes share the cores, a thread spins in one while the other's that
    it waits for has no core: a run with two threads on two busy cores took 30 times as long. OpenMP reads this once,
    when torch is imported for the first time, so a program that imports torch before capfl has to set it itself.
    """
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)

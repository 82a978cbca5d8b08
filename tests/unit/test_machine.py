"""Threads wait asleep, which is said before torch is imported; freed memory goes back to the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from capfl.machine import PASSIVE


def test_importing_capfl_says_so_before_torch_is_there() -> None:
    code = f"import capfl, os, sys; print('torch' in sys.modules, *(os.environ[name] for name in {list(PASSIVE)}))"
    clean = {name: value for name, value in os.environ.items() if name not in PASSIVE}
    for given, expected in (({}, "False PASSIVE 0 0"), ({"KMP_BLOCKTIME": "200"}, "False PASSIVE 0 200")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | given)
        assert done.stdout.strip() == expected, done.stderr


FREED = """
import ctypes, os
from capfl.machine import return_memory

libc = ctypes.CDLL(None)
libc.aligned_alloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
return_memory()
libc.free(libc.aligned_alloc(64, ctypes.c_size_t(2**24)))  # from here on glibc would keep blocks of up to this size

def pages():
    return int(open("/proc/self/statm").read().split()[1])

before, blocks = pages(), [libc.aligned_alloc(64, ctypes.c_size_t(2**21)) for _ in range(32)]
for block in blocks:
    ctypes.memset(block, 1, 2**21)
for block in blocks[:-1]:
    libc.free(block)
print((pages() - before) * os.sysconf("SC_PAGE_SIZE") >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told what to do")
def test_freed_blocks_are_returned_unless_the_environment_says_otherwise() -> None:
    """Of 32 blocks of 2 MiB the last stays in use; all below it would stay with the process."""
    clean = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    for given, least, most in (({}, 2, 6), ({"MALLOC_MMAP_THRESHOLD_": str(2**25)}, 60, 70)):
        done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, env=clean | given)
        assert least <= int(done.stdout) <= most, done.stderr

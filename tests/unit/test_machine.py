"""Idle threads sleep and large tensors get large pages, both set before torch is imported; freed memory is kept."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from capfl.machine import LARGE_PAGES, PASSIVE


def test_importing_capfl_says_so_before_torch_is_there() -> None:
    names = [*PASSIVE, LARGE_PAGES]
    code = f"import capfl, os, sys; print('torch' in sys.modules, *(os.environ[name] for name in {names}))"
    clean = {name: value for name, value in os.environ.items() if name not in names}
    other = {"KMP_BLOCKTIME": "9", LARGE_PAGES: "0"}
    for given, expected in (({}, "False PASSIVE 0 0 1"), (other, "False PASSIVE 0 9 0")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | given)
        assert done.stdout.strip() == expected, done.stderr


FREED = """
import ctypes, os
from capfl.machine import keep_memory, return_memory

libc = ctypes.CDLL(None)
libc.aligned_alloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
keep_memory()

def pages():
    return int(open("/proc/self/statm").read().split()[1])

before, blocks = pages(), [libc.aligned_alloc(64, ctypes.c_size_t(2**23)) for _ in range(8)]
for block in blocks:
    ctypes.memset(block, 1, 2**23)
for block in blocks:
    libc.free(block)
for give_back in (lambda: None, return_memory):
    give_back()
    print((pages() - before) * os.sysconf("SC_PAGE_SIZE") >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told what to do")
def test_freed_blocks_are_kept_unless_the_environment_says_otherwise() -> None:
    """Eight blocks of 8 MiB. What is kept is returned when that is asked for."""
    clean = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    for given, least, most in (({}, 60, 70), ({"MALLOC_MMAP_THRESHOLD_": str(2**20)}, 0, 4)):
        done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, env=clean | given)
        kept, left = map(int, done.stdout.split())
        assert least <= kept <= most, done.stderr
        assert left <= 4

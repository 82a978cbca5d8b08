"""Threads wait asleep: said before torch is imported, which reads it once."""

from __future__ import annotations

import os
import subprocess
import sys

from capfl.machine import PASSIVE


def test_importing_capfl_says_so_before_torch_is_there() -> None:
    code = f"import capfl, os, sys; print('torch' in sys.modules, *(os.environ[name] for name in {list(PASSIVE)}))"
    clean = {name: value for name, value in os.environ.items() if name not in PASSIVE}
    for given, expected in (({}, "False PASSIVE 0 0"), ({"KMP_BLOCKTIME": "200"}, "False PASSIVE 0 200")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | given)
        assert done.stdout.strip() == expected, done.stderr

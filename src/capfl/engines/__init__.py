"""Engines move bytes between server and clients and do nothing else."""

from __future__ import annotations

from capfl.engines.debug import debug
from capfl.engines.serial import serial

ENGINES = {"serial": serial, "debug": debug}

__all__ = ["ENGINES", "debug", "serial"]

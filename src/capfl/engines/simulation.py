"""The engines whose clients are all in this process, by name."""

from __future__ import annotations

from capfl.engines.serial import serial

ENGINES = {"serial": serial}

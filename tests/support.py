"""A tiny run that takes half a second, for any test; and the end of a process at any write."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import util
from pathlib import Path
from types import ModuleType

from capfl.checkpoint import StateReader
from capfl.config import Config, load_config
from capfl.engines.serial import serial
from capfl.experiment import run
from capfl.packing import unpack
from capfl.report.summary import Summary
from capfl.types import ServerState

TINY = {
    "model.path": "tiny",
    "method.name": "fedit",  # the simplest; tests of ca-pfl name it
    "lora.layers": "top:2",
    "lora.targets": ["q_proj", "v_proj"],
    "data.items": 30,
    "data.sites": 2,
    "federation.rounds": 2,
    "train.steps": 2,
    "train.batch_size": 4,
    "codec.values": "fp32",
    "evaluation.references": [],
    "runtime.threads": 1,
}


def tiny_config(out: Path | str, **changes: object) -> Config:
    """A run of about half a second. Changes are dotted keys with `__` for the dot: federation__rounds=3."""
    settings = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(None, settings | {"out": str(out)})


def tiny_run(out: Path | str, **changes: object) -> Summary:
    return run(tiny_config(out, **changes), serial)[0]


def unpacked(blob: bytes, reader: StateReader) -> ServerState:
    """A server's state in one piece. On disk it is in several, which are checked alike."""
    return reader.checked(unpack(ServerState, blob, reader.of_server))


class Killed(BaseException):
    """Not an Exception: nothing catches it."""


def killing(n: int, after: bool = False) -> Callable[[str, str], None]:
    """An ``os.replace``, the last step of every write, that ends the process in its n-th call (1, 2, ...).

    Args:
        after: the file has got its name.
    """
    real, calls = os.replace, 0

    def replace(source: str, target: str) -> None:
        nonlocal calls
        calls += 1
        if calls < n or after:
            real(source, target)
        if calls >= n:
            raise Killed

    return replace


def script(path: Path) -> ModuleType:
    """A Python file that is in no package, as a module."""
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Personalised federated fine-tuning of language models.

    import capfl

    result = capfl.run(clients={"north": rows, "south": "south.jsonl"}, rounds=5)
    print(result.summary.statistics("personal", "accuracy"))

``run`` runs an experiment and gives a ``Result``. ``load`` reads an adapter that a run has saved. A ``Callback`` is
called while a run goes on. A ``Method`` is a row of parts (docs/methods.md). A ``Config`` describes a run. All errors
that are raised on purpose are ``CapflError``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from capfl.machine import set_environment

if TYPE_CHECKING:
    from capfl.api import run
    from capfl.config import Config
    from capfl.errors import CapflError
    from capfl.methods import Method
    from capfl.report.progress import Callback
    from capfl.result import Result
    from capfl.scoring import load

set_environment()  # before anybody imports torch

__version__ = "0.2.0"
__all__ = ["Callback", "CapflError", "Config", "Method", "Result", "load", "run"]

_PLACES = {
    "run": "capfl.api",
    "Config": "capfl.config",
    "CapflError": "capfl.errors",
    "Method": "capfl.methods",
    "Callback": "capfl.report.progress",
    "Result": "capfl.result",
    "load": "capfl.scoring",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: the network's own processes do without torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'capfl' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)

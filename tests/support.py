"""A tiny run that takes half a second, for any test."""

from __future__ import annotations

from pathlib import Path

from capfl.config import Config, load_config
from capfl.engines.serial import serial
from capfl.experiment import run
from capfl.report.summary import Summary

TINY = {
    "model.path": "tiny",
    "method.name": "fedit",
    "lora.layers": "top:2",
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

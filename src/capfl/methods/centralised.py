"""Centralised: one model trained on the union of all clients' data. What no federation can do; a reference."""

from __future__ import annotations

from dataclasses import replace

from capfl.methods.base import Method
from capfl.methods.fedit import fedit


def centralised() -> Method:
    """FedIT with a single client that holds everything: its mean is that client's adapter."""
    return replace(
        fedit(),
        name="centralised",
        about="all data in one place",
        citation="reference",
        travels="nothing",
        exact=None,
        pooled=True,
    )

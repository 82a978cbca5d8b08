"""What all conformance tests share."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of modulators are fitted here, and none has to be fitted well."""
    module = importlib.import_module("capfl.methods.capfl")  # the package has a function of that name
    monkeypatch.setattr(module, "FIT_STEPS", 3)

"""docs/architecture.md names functions that exist, and the order of rooms that the linter checks."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_a_row_passes_functions_that_exist() -> None:
    named = re.findall(r"^\d+\. `([\w.]+):([\w.]+)`", PAGE, re.MULTILINE)
    assert 20 <= len(named) <= 30
    for module, path in named:
        found: object = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        assert callable(found), path


def test_the_rooms_are_those_that_the_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    order = [name for layer in layers for name in re.split(r"\s*\|\s*", layer)]
    rows = [re.findall(r"`(\w+)(?:\.py|/)`", row.split("|")[1]) for row in PAGE.splitlines() if row.startswith("| `")]
    assert sorted(name for row in rows for name in row) == sorted(order)
    first = [min(order.index(name) for name in row) for row in rows]
    assert first == sorted(first)

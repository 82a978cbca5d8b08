"""Methods of one's own, from a Python file: ablations of a comparison, or what somebody tries out."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capfl.errors import ConfigError
from capfl.methods import Method

NAME = "METHODS"


def load_rows(path: Path) -> dict[str, Method]:
    """The methods in a file with ``METHODS = {"name": Method(...), ...}``. The file is executed.

    Raises:
        ConfigError: the file cannot be read or executed, or has no such table.
    """
    name = f"capfl_rows_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: is no Python file; give a .py file with {NAME} = {{...}}")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
        where = f", line {lines[-1]}" if lines else ""
        raise ConfigError(f"{path}{where}: {type(error).__name__} when it was executed: {error}") from error
    rows: Any = getattr(module, NAME, None)
    if not isinstance(rows, Mapping) or not rows:
        raise ConfigError(f'{path}: has no table {NAME} = {{"name": Method(...), ...}}')
    for key, row in rows.items():
        if not isinstance(row, Method):
            raise ConfigError(f"{path}: {NAME}[{key!r}] is a {type(row).__name__}; give a capfl.methods.Method")
    return dict(rows)

"""Methods of one's own, from a Python file: ablations of a comparison, or what somebody tries out."""

from __future__ import annotations

import importlib.util
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
    spec = importlib.util.spec_from_file_location(f"capfl_rows_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: is no Python file; give a .py file with {NAME} = {{...}}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except Exception as error:
        raise ConfigError(
            f"{path}: {type(error).__name__} when it was executed: {error}{_line(error, path)}"
        ) from error
    rows: Any = getattr(module, NAME, None)
    if not isinstance(rows, Mapping) or not rows:
        raise ConfigError(f'{path}: has no table {NAME} = {{"name": Method(...), ...}}')
    for name, row in rows.items():
        if not isinstance(name, str) or not isinstance(row, Method):
            raise ConfigError(
                f"{path}: {NAME}[{name!r}] is a {type(row).__name__}; give a name and a capfl.methods.Method"
            )
    return dict(rows)


def _line(error: Exception, path: Path) -> str:
    """Where in the file it happened."""
    if isinstance(error, SyntaxError):
        return ""
    trace, line = error.__traceback__, None
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
        trace = trace.tb_next
    return f" (line {line})" if line else ""

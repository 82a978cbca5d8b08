"""The epsilon that all runs of a node may take of its site's items together (``privacy.protects = items``)."""

from __future__ import annotations

from pathlib import Path

from capfl.errors import ConfigError
from capfl.taken import read_taken

RUNS = "runs"  # in the node's folder: a folder for each run


class Budget:
    """Most epsilon of a node. What its runs have taken adds up, as do their deltas.

    Args:
        most: of all runs together.
        state: the node's folder.

    Raises:
        ConfigError: ``most`` is not above 0.
    """

    def __init__(self, most: float, state: Path) -> None:
        if not most > 0:  # or no number
            raise ConfigError(f"--max-epsilon: {most:g} allows no run; give a number above 0, such as 8")
        self._most, self._runs = most, state / RUNS

    def left(self, run: str) -> float:
        """What a run may have taken when it ends. Raises CheckpointError: as ``read_taken``."""
        return max(0.0, self._most - self._taken(but=run))

    def said(self) -> str:
        """What runs may take, for the node's operator. Raises CheckpointError: as ``read_taken``."""
        return f"runs may take epsilon {self._most:g} of this site's items together, and have taken {self._taken():.4g}"

    def _taken(self, but: str = "") -> float:
        folders = self._runs.iterdir() if self._runs.is_dir() else ()
        return sum(read_taken(folder).epsilon for folder in sorted(folders) if folder.name != but)

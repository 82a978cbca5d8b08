"""The epsilon that all runs of a node may take of its site's items together (``privacy.protects = items``)."""

from __future__ import annotations

from pathlib import Path

from capfl.errors import ConfigError

RUNS = "runs"  # in the node's folder: a folder for each run


class Budget:
    """Most epsilon of a node. What its runs have taken adds up, as do their deltas.

    Args:
        most: None: any.
        state: the node's folder.

    Raises:
        ConfigError: ``most`` is not above 0.
    """

    def __init__(self, most: float | None, state: Path) -> None:
        if most is not None and not most > 0:  # nor is it a number, perhaps
            raise ConfigError(f"--max-epsilon: {most:g} allows no run; give a number above 0, such as 8")
        self._most, self._runs = most, state / RUNS

    def left(self, run: str) -> float | None:
        """What a run may have taken when it ends; None: any. Raises CheckpointError: as ``site.epsilon_taken``."""
        return None if self._most is None else max(0.0, self._most - self._taken(but=run))

    def said(self) -> str:
        """What runs may take, for the node's operator. Raises CheckpointError: as ``site.epsilon_taken``."""
        if self._most is None:
            return "runs may take any epsilon of this site's items, or not protect them"
        return f"runs may take epsilon {self._most:g} of this site's items together, and have taken {self._taken():.4g}"

    def _taken(self, but: str = "") -> float:
        from capfl.site import epsilon_taken

        folders = self._runs.iterdir() if self._runs.is_dir() else ()
        return sum(epsilon_taken(folder) for folder in sorted(folders) if folder.name != but)

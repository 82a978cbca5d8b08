"""What a finished run gives back: its clients, its adapters, its summary and its page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from capfl.report.summary import ClientRow, Summary, read_summary
from capfl.report.tables import client_table
from capfl.types import ClientId


@dataclass(frozen=True)
class Result:
    """A finished run: ``path`` is its folder."""

    path: Path
    summary: Summary

    @classmethod
    def open(cls, path: Path | str) -> Result:
        """The run in a folder.

        Raises:
            CheckpointError: it is no run or not finished, or its files do not agree.
        """
        return cls(Path(path), read_summary(Path(path)))

    @property
    def clients(self) -> dict[ClientId, ClientRow]:
        """Each client's row: its scores, group, ranks and bytes."""
        return {row.id: row for row in self.summary.rows}

    @property
    def adapters(self) -> dict[str, Path]:
        """Folders of adapters in PEFT's format, by name: ``global``, ``groups/NAME``, ``clients/CLIENT``."""
        place = self.path / "adapters"
        found = sorted(config.parent for config in place.rglob("adapter_config.json"))
        return {folder.relative_to(place).as_posix(): folder for folder in found}

    def report(self, path: Path | str | None = None) -> Path:
        """Write the run's HTML page, by default to ``report.html`` in its folder. Returns where it is."""
        from capfl.report.page import write_page

        return write_page(self.path, Path(path) if path else self.path / "report.html")

    def _repr_html_(self) -> str:
        """The table of clients, for notebooks."""
        return client_table(self.summary).html()

"""One HTML page about a run or a comparison, with all that it needs inside: `capfl report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from capfl.compare.folder import NAME
from capfl.errors import CheckpointError
from capfl.files import write_atomically
from capfl.page.comparison import comparison_page
from capfl.page.run import run_page
from capfl.report.tables import Table


def write_page(folder: Path, out: Path) -> Path:
    """Write the page of a finished run or of a comparison. It loads nothing, from nowhere. Returns its path.

    Raises:
        CheckpointError: the folder is neither, the run is not finished, or its files do not agree.
    """
    if (folder / NAME).is_file():
        text = render("comparison.html", comparison_page(folder))
    elif (folder / "summary.json").is_file():
        text = render("run.html", run_page(folder))
    elif (folder / "config.toml").is_file():
        raise CheckpointError(f"{folder} is not finished; go on with: capfl run --resume {folder}")
    else:
        raise CheckpointError(
            f"{folder} has no summary.json and no {NAME}; give the folder of a run or of `capfl compare`"
        )
    write_atomically(out, text.encode())
    return out


def render(template: str, context: dict[str, Any]) -> str:
    """A template of this room. Everything that is not markup already is escaped; a missing name is an error."""
    return _environment().get_template(template).render(context)


def table_html(table: Table) -> str:
    """A table alone, without the page's styles."""
    module: Any = _environment().get_template("page.html").module
    return str(module.table(table))


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip

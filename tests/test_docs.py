"""What docs/methods.md says: its method runs, and its tables are those of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import capfl
from capfl.methods import METHODS, describe
from fake import steps
from parts import INITIAL, folded

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "methods.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def table(first: str) -> list[list[str]]:
    """The rows of the table whose first line begins so, without its heads."""
    lines = PAGE[PAGE.index(f"| {first} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_method_of_your_own_takes_less_than_forty_lines_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(EXAMPLE.splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    made: dict[str, object] = {"__name__": "__main__"}
    exec(compile(EXAMPLE, "docs/methods.md", "exec"), made)
    result, row = made["result"], made["ROW"]
    assert isinstance(result, capfl.Result)
    assert isinstance(row, capfl.Method)
    assert made["METHODS"] == {"doubled": row}
    assert (result.summary.method, result.summary.rounds) == ("doubled", 2)
    assert len(result.clients) == 4

    a, b = steps("a", 1), steps("b", 1)
    for name, t in folded(row.combine, [(a, 1.0), (b, 3.0)]).items():
        torch.testing.assert_close(t, INITIAL[name] + 2 * (a[name] + 3 * b[name]) / 4)


def test_the_tables_of_the_page_are_those_of_the_package() -> None:
    rows = {row[0].split()[0].strip("`"): row for row in table("method | what it does")}
    assert set(rows) == set(METHODS)
    for words in describe():
        cells = rows[words["method"]]
        if words["source"].startswith("arXiv:"):
            assert f"https://arxiv.org/abs/{words['source'].removeprefix('arXiv:')}" in cells[0]
    questions = ("trained and sent", "combined", "learns with", "ranks", "personal model")
    expected = [[f"`{words['method']}`", *(words[question] for question in questions)] for words in describe()]
    assert table("method | trained and sent") == expected

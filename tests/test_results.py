"""The tables in README and docs/results are those of the committed comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
SHOWN = ["local", "fedit", "ca-pfl"]  # in the README


@pytest.fixture
def readme(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme

    return readme


def rows_of(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def test_the_readme_has_the_rows_of_the_comparison(readme: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.into(text, "comparison", readme.table(rows_of("comparison"), SHOWN)) == text
    for page in ("no marks", f"{readme.END}{readme.begin('comparison')}"):
        with pytest.raises(ValueError, match="the page needs a line '<!-- table: comparison -->'"):
            readme.into(page, "comparison", "text")


OF_METHODS = ["methods", "ablations", "ablations-conflict", "earlier", "commonsense", "parts", "parts-conflict"]


OF_THEIR_OWN = [("comparison.md", "comparison"), ("gemma.md", "gemma")]


@pytest.mark.parametrize(("page", "name"), [*OF_THEIR_OWN, *(("methods.md", name) for name in OF_METHODS)])
def test_the_page_has_the_rows_of_the_comparisons(readme: ModuleType, page: str, name: str) -> None:
    _, _, rest = (RESULTS / page).read_text(encoding="utf-8").partition(readme.begin(name))
    lines = [line for line in rest.partition(readme.END)[0].splitlines() if line.startswith("| ")]
    rows = rows_of(name)
    told = [line for line in lines if not line.startswith(("| variant ", "| ---"))]
    assert len(told) == len(rows) > 0
    for line, row in zip(told, rows, strict=True):
        assert line.startswith(f"| {row['label']} | {', '.join(map(str, row['seeds']))} |")
        assert readme.spread(row["personal"], "accuracy") in line
        assert readme.apart(row["difference"]) in line

"""The hooks of the documentation site: where links lead, and what stands in the navigation."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from support import script

pytest.importorskip("mkdocs", reason="no mkdocs: make site installs it")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return script(ROOT / "docs" / "site" / "hooks.py")


@pytest.mark.parametrize(
    ("here", "link", "there"),
    [
        ("index.md", "[d](docs/data.md#x)", "[d](data.md#x)"),
        ("index.md", "![s](docs/results/methods.svg)", "![s](results/methods.svg)"),
        ("index.md", "[l](LICENSE)", "[l](repository/LICENSE.md)"),
        ("index.md", "[a](docs/adr)", "[a](adr/0001-adapters-are-flat-dicts.md)"),
        ("index.md", '<img src="docs/results/demo.svg">', '<img src="results/demo.svg">'),
        ("methods.md", "[a](../benchmarks/ablations.py)", "[a](repository/benchmarks/ablations.py.md)"),
        ("adr/0018-training-in-turn.md", "[r](../../README.md)", "[r](../index.md)"),
        ("methods.md", "[w](https://example.org/a.md) [h](#x) [n](no-such-file.md)", None),
        ("methods.md", "```\n[a](../benchmarks/ablations.py)\n```", None),
    ],
)
def test_a_link_leads_to_a_page_of_the_site(hooks: ModuleType, here: str, link: str, there: str | None) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=here), parent=object(), meta={})
    assert hooks.on_page_markdown(link, page, None, None) == (there or link)


def test_a_link_to_a_page_in_html_is_refused(hooks: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"), parent=object(), meta={})
    with pytest.raises(ValueError, match=r"index\.md: write the link to docs/data\.md in Markdown"):
        hooks.on_page_markdown('<a href="docs/data.md">data</a>', page, None, None)


def test_a_pattern_stands_for_pages_that_nothing_else_names(hooks: ModuleType, tmp_path: Path) -> None:
    for name in ("a.md", "b.md", "c.md", "adr/2.md", "adr/1.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    nav = [{"Start": "index.md"}, {"How-to": ["b.md", "*.md"]}, {"More": [{"C": "c.md"}, "adr/*.md"]}]
    config = hooks.on_config(SimpleNamespace(docs_dir=str(tmp_path), nav=nav))
    assert config.nav == [
        {"Start": "index.md"},
        {"How-to": ["b.md", "a.md"]},
        {"More": [{"C": "c.md"}, "adr/1.md", "adr/2.md"]},
    ]


def test_a_notebook_is_shown_as_its_cells(hooks: ModuleType) -> None:
    path = ROOT / "examples" / "groups.ipynb"
    first, second = json.loads(path.read_text(encoding="utf-8"))["cells"][:2]
    shown = hooks.shown_as_page(path)
    assert shown.startswith("# examples/groups.ipynb\n\n" + "".join(first["source"]))
    assert f"```python\n{''.join(second['source'])}\n```" in shown

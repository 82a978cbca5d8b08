"""What mkdocs does beside its settings: a home page made of README.md, and links that also work on GitHub.

Pages link to files of the repository that are not pages, such as ``../benchmarks/codec.py``. Each such file becomes a
page of the site below ``repository/``, which shows it. So the site needs no other place.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
HOME = "index.md"
LINK = re.compile(r"""(?P<before>\]\(|(?:src|srcset|href)=")(?P<path>[^)"#:\s]+)(?P<after>[#)"\s])""")
FENCED = re.compile(r"^(```+).*?^\1", re.M | re.S)
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".jsonl": "json", ".yml": "yaml", "": "text"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Patterns in the navigation become pages."""
    pages = sorted(path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md"))
    named = set(_named(config.nav))
    config.nav = _filled(config.nav, [page for page in pages if page not in named])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, and a page for every file of the repository that a page links to."""
    files.append(File.generated(config, HOME, content=(ROOT / "README.md").read_text(encoding="utf-8")))
    shown: set[str] = set()
    for file in list(files.documentation_pages()):
        shown.update(linked(file.content_string, file.src_uri))
    for path in sorted(path for path in shown if place_of(path).startswith("repository/")):
        content, level = shown_as_page(ROOT / path), InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, place_of(path), content=content, inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links lead to pages of the site, and show no list of pages beside a page that is alone in its section."""
    here = page.file.src_uri
    if page.parent is None:
        page.meta["hide"] = ["navigation"]

    def moved(found: re.Match[str]) -> str:
        path = target(found["path"], here)
        if path is None:
            return found[0]
        where = posixpath.relpath(place_of(path), posixpath.dirname(here) or ".")
        if found["before"] != "](" and where.endswith(".md"):  # mkdocs leaves links in HTML as they are
            raise ValueError(f"{here}: write the link to {found['path']} in Markdown")
        return f"{found['before']}{where}{found['after']}"

    if here.startswith("repository/"):
        return markdown
    return outside_fences(markdown, lambda text: LINK.sub(moved, text))


def linked(markdown: str, here: str) -> Iterator[str]:
    """The files of the repository that a page links to, by their paths from its root."""
    for found in LINK.finditer(FENCED.sub("", markdown)):
        if path := target(found["path"], here):
            yield path


def target(link: str, here: str) -> str | None:
    """What a link of the page ``here`` leads to, from the repository's root; None: no file or folder of it."""
    start = ROOT if here == HOME else ROOT / "docs" / posixpath.dirname(here)
    path = Path(os.path.normpath(start / link))
    return path.relative_to(ROOT).as_posix() if path.exists() and path.is_relative_to(ROOT) and path != ROOT else None


def place_of(path: str) -> str:
    """Where a file of the repository is in the site, as mkdocs counts: from docs/. A folder of pages is its first."""
    if not path.startswith("docs/"):
        return HOME if path == "README.md" else f"repository/{path}.md"
    if (ROOT / path).is_dir():
        index = ROOT / path / "README.md"
        path = (index if index.exists() else min((ROOT / path).glob("*.md"))).relative_to(ROOT).as_posix()
    return path.removeprefix("docs/")


def shown_as_page(path: Path) -> str:
    """A file as Markdown: a notebook as its cells, a folder as a list of its files, anything else as it is."""
    title = f"# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        return title + "\n".join(f"- `{each.name}`" for each in sorted(path.iterdir()) if each.name[0] not in "._")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        return title + "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)
    return f"{title}````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````"


def outside_fences(markdown: str, change: Any) -> str:
    """Change what does not stand in a block of code."""
    parts, at = [], 0
    for fence in FENCED.finditer(markdown):
        parts += [change(markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, change(markdown[at:])])


def _named(nav: Any) -> Iterator[str]:
    for each in nav if isinstance(nav, list) else nav.values():
        if isinstance(each, str):
            yield each
        else:
            yield from _named(each)


def _filled(nav: list[Any], pages: list[str]) -> list[Any]:
    filled: list[Any] = []
    for each in nav:
        if isinstance(each, str) and "*" in each:
            filled += [p for p in pages if posixpath.dirname(p) == posixpath.dirname(each) and fnmatch(p, each)]
        elif isinstance(each, dict):
            filled += [{k: _filled(v, pages) if isinstance(v, list) else v for k, v in each.items()}]
        else:
            filled.append(each)
    return filled

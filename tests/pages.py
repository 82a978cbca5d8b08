"""The pages of the documentation, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
OF_THEIR_DAY = {"CHANGELOG.md", "docs/LOG.md", "docs/results/methods.md"}  # they tell of commands that are gone
PAGES = {
    name: path
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if (name := str(path.relative_to(ROOT))) not in OF_THEIR_DAY
}
PROGRAMS = r"capfl|make|python\S*|pip|vllm|llama-\w+|ollama|docker|git|curl"
COMMAND = re.compile(rf"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:time |\S*bin/)?({PROGRAMS}) (.*)")


def block_lines(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of blocks that may be of commands, and whether they are in a fence: of no language, or of the shell's.

    Indented blocks are read as well.
    """
    fence = None
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
        elif fence in ("", "bash", "sh", "console"):
            yield line, True
        elif fence is None and re.match(r" {4}\S", line):
            yield line, False


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command line: the program, without what a comment, a pipe or a second command adds.

    Raises:
        ValueError: a line in a fence is no command.
    """
    for line, fenced in block_lines(page.read_text(encoding="utf-8")):
        if found := COMMAND.match(line):
            words = shlex.split(found[2], comments=True)
            ends = [k for k, word in enumerate(words) if word in (";", "|", "&&", "&", ">", "2>&1", "||")]
            yield [found[1], *words[: ends[0] if ends else None]]
        elif fenced and line.strip():
            raise ValueError(f"{page}: no command: {line!r}; name the language of its block, or PROGRAMS lacks one")

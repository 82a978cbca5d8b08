"""Draws the pictures of docs/pictures.md.

    python docs/site/pictures.py        # writes docs/pictures/*.svg

They are sketches: what they show is in docs/capfl.md. Colours follow the reader's light or dark mode, and each picture
brings its own background, so that it can be read on any page.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "pictures"
WIDTH = 640
STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; text-anchor: middle; }
.start { text-anchor: start; }
.small { font-size: 12px; fill: #59636e; }
.card { fill: #ffffff; stroke: #d1d9e0; }
.line { fill: none; stroke: #818b98; stroke-width: 1.5; }
.dashed { fill: none; stroke: #818b98; stroke-width: 1.5; stroke-dasharray: 5 4; }
.tip { fill: #818b98; }
.box { fill: #f0f3f6; stroke: #818b98; }
.none { fill: #dfe4ea; }
.blue { fill: #3b6fd4; }
.orange { fill: #c9632a; }
.grey { fill: #818b98; }
.hollow { fill: none; stroke: #c9632a; stroke-width: 1.5; stroke-dasharray: 3 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #9da7b3; }
  .card { fill: #161b22; stroke: #3d444d; }
  .box { fill: #262c36; }
  .none { fill: #323a45; }
  .blue { fill: #6f9bf0; }
  .orange { fill: #ea9463; }
  .hollow { stroke: #ea9463; }
}
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{_class(kind)}>{words}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, round: float = 0) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round:g}"{_class(kind)}/>'


def circle(x: float, y: float, radius: float, kind: str) -> str:
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}"{_class(kind)}/>'


def path(points: str, kind: str = "line") -> str:
    return f'<path d="{points}"{_class(kind)}/>'


def arrow(x: float, y: float, length: float) -> str:
    """To the right, from (x, y)."""
    end = x + length
    return path(f"M{x:g} {y:g}H{end - 6:g}") + path(f"M{end:g} {y:g}l-8 -4.5v9z", "tip")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def picture(title: str, height: int, parts: list[str]) -> str:
    """A whole SVG file."""
    inside = "\n".join([rect(0.5, 0.5, WIDTH - 1, height - 1, "card", 10), *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{title}">\n<title>{title}</title>\n<style>{STYLE}</style>\n{inside}\n</svg>\n'
    )


def groups() -> str:
    sites = {"clinic north": 80, "clinic south": 200, "shop east": 340, "shop west": 460, "museum": 580}
    colours = ["blue", "blue", "orange", "orange", "grey"]
    parts = [rect(230, 20, 180, 44, "box", 6), text(320, 47, "server: who is alike?")]
    for (name, x), colour in zip(sites.items(), colours, strict=True):
        parts += [path(f"M{x} 130C{x} 95 320 105 320 66"), circle(x, 148, 17, colour), text(x, 188, name)]
    parts += [rect(22, 118, 236, 84, "dashed", 12), rect(282, 118, 236, 84, "dashed", 12)]
    parts += [text(140, 224, "a group: one adapter", "small"), text(400, 224, "a group: one adapter", "small")]
    parts += [text(580, 224, "no peer: its own", "small"), text(540, 60, "a description of its", "small")]
    parts += [text(540, 77, "data each, once", "small")]
    return picture("Five sites: two clinics form a group, two shops form another, a museum has no peer", 242, parts)


def turns() -> str:
    parts = []
    for row, (names, before) in enumerate([(("south", "west", "north"), 0), (("north", "south", "west"), 3)]):
        y = 30 + 100 * row
        parts += [text(24, y + 34, f"round {row + 1}", "start")]
        for k, name in enumerate(names):
            x = 112 + 176 * k
            parts += [rect(x, y, 120, 58, "box", 6), text(x + 60, y + 23, name)]
            for part in range(6):
                parts.append(rect(x + 16 + 15 * part, y + 36, 12, 10, "blue" if part <= before + k else "none", 2))
            if k < 2:
                parts.append(arrow(x + 124, y + 29, 48))
    parts += [path("M528 88v12q0 9 -9 9H181q-9 0 -9 9v4"), path("M172 130l-4.5 -8h9z", "tip")]
    parts += [text(320, 216, "the bar is what the group's adapter has learnt so far", "small")]
    title = "Three sites of a group train one after the other; the next round has another order"
    return picture(title, 236, parts)


def ranks() -> str:
    heights = [112, 46, 84, 16, 66, 98, 22, 74]
    floor = sum(heights) / len(heights) / 2
    ground, parts = 166, []
    for k, height in enumerate(heights):
        kind = "blue" if height >= floor else "hollow"
        parts.append(rect(60 + 44 * k, ground - height, 28, height, kind, 2))
        parts.append(text(74 + 44 * k, ground + 19, str(k + 1), "small"))
    parts += [path(f"M44 {ground}H416"), path(f"M44 {ground - floor:g}H416", "dashed")]
    parts += [text(428, ground - floor + 4, "floor: half the mean", "small start")]
    parts += [text(230, 36, "importance κ of each rank, as one site has learnt it")]
    parts += [rect(428, 62, 14, 14, "blue", 2), text(450, 74, "in the site's own model", "start")]
    parts += [rect(428.5, 88.5, 13, 13, "hollow", 2), text(450, 100, "missing from it", "start")]
    return picture("Bars of the importance of eight ranks; two below the floor are missing from the model", 204, parts)


def messages() -> str:
    draw = random.Random(7)
    columns, lines, size = 15, 6, 15
    cells = [(column, line) for line in range(lines) for column in range(columns)]
    sent = {cell: draw.choice(["blue", "orange"]) for cell in draw.sample(cells, len(cells) // 5)}
    parts = []
    for left, kinds in ((30, None), (380, sent)):
        for column, line in cells:
            kind = sent.get((column, line), "none") if kinds is not None else draw.choice(["blue", "orange"])
            shade = 1 if kinds is not None else draw.choice([0.25, 0.45, 0.7, 1])
            box = rect(left + size * column, 44 + size * line, size - 2, size - 2, kind, 2)
            parts.append(box if shade == 1 else box.replace("/>", f' opacity="{shade:g}"/>'))
    parts += [
        arrow(272, 88, 92),
        text(142, 28, "the change: every value"),
        text(492, 28, "a random fifth, one bit each"),
    ]
    parts += [rect(30, 160, 580, 12, "none", 2), rect(30, 160, 580 * 13 / 1954, 12, "blue")]
    parts += [text(30, 192, "13 kB, at the scale of the whole bar: 1,954 kB in float32", "small start")]
    return picture("A random fifth of the values of a change is sent, one bit each: 13 kB for 1,954 kB", 208, parts)


PICTURES: dict[str, Callable[[], str]] = {"groups": groups, "turns": turns, "ranks": ranks, "messages": messages}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The charts of a page, each a function of numbers. What colour is which stands in the page's legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from capfl.page.svg import LETTER, WIDTH, Axes, axes_of, cut, drawing, line, margin, number, path, tag, text, ticks
from capfl.report.tables import size


@dataclass(frozen=True)
class Series:
    """A curve. ``band`` has the lowest and the highest value at each x, if there is one."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    css: str = "s0"  # classes of its colour


@dataclass(frozen=True)
class Mark:
    """A point with the whiskers from ``low`` to ``high``."""

    name: str
    x: float
    y: float
    low: float
    high: float
    css: str


def curves(
    series: Sequence[Series], x_label: str, label: str, levels: Mapping[str, float] | None = None, log_x: bool = False
) -> Markup:
    """Curves over a common x, with dashed levels across."""
    levels = levels or {}
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [y for s in series for pair in s.band for y in pair]
    axes = axes_of(xs, [*ys, *levels.values()], 240, log_x)
    parts = axes.draw(x_label)
    parts += _levels(axes, levels)
    for s in series:
        own = s.css
        if s.band:
            outline = [(x, high) for (x, _), (_, high) in zip(s.points, s.band, strict=True)]
            outline += [(x, low) for (x, _), (low, _) in zip(s.points, s.band, strict=True)][::-1]
            parts.append(tag("path", d=path(axes, outline) + "Z", class_=f"area {own}"))
        title = tag("title", s.name)
        parts.append(tag("path", title, d=path(axes, s.points), class_=f"curve {own}"))
        if len(s.points) == 1:
            parts.append(tag("circle", title, cx=axes.x(s.points[0][0]), cy=axes.y(s.points[0][1]), r=3, class_=own))
    return drawing(parts, 240, label)


def scatter(marks: Sequence[Mark], x_label: str, label: str, levels: Mapping[str, float] | None = None) -> Markup:
    """Named points on a logarithmic x, with whiskers, and levels across for what has no place on it."""
    levels = levels or {}
    ys = [y for mark in marks for y in (mark.low, mark.high)]
    axes = axes_of([mark.x for mark in marks], [*ys, *levels.values()], 260, log_x=True)
    parts = axes.draw(x_label)
    parts += _levels(axes, levels)
    for mark in marks:
        x, y, own = axes.x(mark.x), axes.y(mark.y), mark.css
        if mark.high > mark.low:
            parts.append(line(x, axes.y(mark.low), x, axes.y(mark.high), f"whisker {own}"))
        parts.append(tag("circle", tag("title", mark.name), cx=x, cy=y, r=4.5, class_=own))
    return drawing(parts, 260, label)


def _levels(axes: Axes, levels: Mapping[str, float]) -> list[Markup]:
    parts = []
    for name, y in levels.items():
        parts.append(line(axes.left, axes.y(y), axes.right, axes.y(y), "level"))
        parts.append(text(axes.right, axes.y(y) - 4, name, "end", "tick"))
    return parts


def bars(groups: Sequence[tuple[str, Sequence[float]]], css: Sequence[str], x_label: str, label: str) -> Markup:
    """Horizontal bars, a group for each name, from 0 to 100."""
    thick, gap = (9.0, 9.0) if len(css) < 3 else (6.0, 8.0)
    left = margin([name for name, _ in groups])
    step = thick * len(css) + gap
    bottom = 6 + step * len(groups)
    axes = Axes(left, 6, WIDTH - 14, bottom, [0, 25, 50, 75, 100], [0, 1])
    parts = [line(axes.x(t), 6, axes.x(t), bottom, "grid") for t in axes.x_ticks]
    parts += [text(axes.x(t), bottom + 14, number(t), "middle", "tick") for t in axes.x_ticks]
    parts.append(text((left + WIDTH - 14) / 2, bottom + 29, x_label, "middle", "label"))
    for i, (name, values) in enumerate(groups):
        top = 6 + i * step + gap / 2
        parts.append(text(left - 6, top + thick * len(css) / 2 + 3.5, cut(name), "end", "tick"))
        for k, (value, own) in enumerate(zip(values, css, strict=True)):
            title = tag("title", f"{name}: {value:.1f}")
            width = axes.x(value) - left
            y = top + k * thick
            parts.append(tag("rect", title, x=left, y=y, width=width, height=thick - 1, class_=own))
    return drawing(parts, bottom + 36, label)


def forest(rows: Sequence[tuple[str, float, float, float]], x_label: str, label: str) -> Markup:
    """(name, mean, low, high): dots with intervals around a line at zero; hollow where the interval crosses it."""
    left = margin([name for name, *_ in rows])
    bottom = 8 + 22.0 * len(rows)
    x_ticks = ticks(min(0.0, *(r[2] for r in rows)), max(0.0, *(r[3] for r in rows)))
    axes = Axes(left, 8, WIDTH - 14, bottom, x_ticks, [0, 1])
    parts = [line(axes.x(t), 8, axes.x(t), bottom, "grid") for t in x_ticks]
    parts += [text(axes.x(t), bottom + 14, number(t), "middle", "tick") for t in x_ticks]
    parts.append(line(axes.x(0), 8, axes.x(0), bottom, "axis"))
    parts.append(text((left + WIDTH - 14) / 2, bottom + 29, x_label, "middle", "label"))
    for i, (name, mean, low, high) in enumerate(rows):
        y = 8 + 22.0 * i + 11
        title = tag("title", f"{name}: {mean:+.1f} ({low:+.1f} to {high:+.1f})")
        kind = "open" if round(low, 6) <= 0 <= round(high, 6) else "below" if high < 0 else "above"
        parts.append(text(left - 6, y + 3.5, cut(name), "end", "tick"))
        parts.append(line(axes.x(low), y, axes.x(high), y, f"whisker {kind}"))
        parts.append(tag("circle", title, cx=axes.x(mean), cy=y, r=4.5, class_=kind))
    return drawing(parts, bottom + 36, label)


def heat(rows: Sequence[tuple[str, Sequence[int]]], groups: Sequence[tuple[str, int]], most: int, label: str) -> Markup:
    """Whole numbers from 0 to ``most`` as cells; ``groups`` names runs of columns: (name, how many)."""
    left = margin([name for name, _ in rows])
    n = sum(count for _, count in groups)
    width, height = (WIDTH - 6 - left) / n, 13.0
    bottom = 4 + height * len(rows)
    by_level: dict[int, list[str]] = {}
    parts = []
    for i, (name, values) in enumerate(rows):
        parts.append(text(left - 6, 4 + height * i + 9.5, cut(name), "end", "tick"))
        for j, value in enumerate(values):
            by_level.setdefault(value, []).append(
                f"M{left + j * width:.1f} {4 + i * height:g}h{width:.2f}v12h-{width:.2f}z"
            )
    for value, cells in sorted(by_level.items()):  # one path for each level: an element a cell would be a large page
        share = value / most if most else 0.0
        parts.append(tag("path", d="".join(cells), class_="cell", style=f"--level:{share:.3f}"))
    x, before = left, -math.inf
    for name, count in groups:
        parts.append(line(x, 2, x, bottom + 3, "divide"))
        middle = x + count * width / 2
        if middle - before > LETTER * len(name) + 6:
            parts.append(text(middle, bottom + 13, name, "middle", "tick"))
            before = middle
        x += count * width
    parts.append(text((left + WIDTH) / 2, bottom + 28, "layer", "middle", "label"))
    return drawing(parts, bottom + 34, label)


def stacked(rows: Sequence[tuple[str, Mapping[str, float]]], parts_css: Mapping[str, str], label: str) -> Markup:
    """Horizontal bars of parts, all rows on one scale; the total stands at the end of each."""
    left = margin([name for name, _ in rows])
    totals = [sum(own.values()) for _, own in rows]
    scale = (WIDTH - left - 70) / max(*totals, 1.0)
    drawn = []
    for i, ((name, own), total) in enumerate(zip(rows, totals, strict=True)):
        y, x = 6 + 26.0 * i, left
        drawn.append(text(left - 6, y + 12.5, cut(name), "end", "tick"))
        for part, n_bytes in own.items():
            title = tag("title", f"{part}: {size(n_bytes)}")
            drawn.append(tag("rect", title, x=x, y=y, width=n_bytes * scale, height=18, class_=parts_css[part]))
            x += n_bytes * scale
        drawn.append(text(x + 5, y + 12.5, size(total), "start", "tick"))
    return drawing(drawn, 8 + 26.0 * len(rows), label)

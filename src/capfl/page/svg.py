"""Small charts as inline SVG. Colours are CSS classes, so that the page's light, dark and print styles hold in them.

Every chart is drawn in a box ``WIDTH`` units wide, which fits a phone; larger screens scale it up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from capfl.report.tables import size

WIDTH = 400
LETTER = 6.3  # mean width of a letter of the charts' text, for margins
SERIES = 8  # colours; the next ones are the same, dashed


@dataclass(frozen=True)
class Series:
    """A curve. ``band`` has the lowest and the highest value at each x, if there is one."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    css: str = ""  # class of its colour; by default by its position


@dataclass(frozen=True)
class Mark:
    """A point with the whiskers from ``low`` to ``high``."""

    name: str
    x: float
    y: float
    low: float
    high: float


def tag(name: str, content: object = "", **attributes: object) -> Markup:
    """One element. A trailing underscore and dashes in names: ``class_``, ``text_anchor``."""
    words = [
        f'{key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items() if value not in (None, "")
    ]  # fmt: skip
    return Markup(f"<{' '.join([name, *words])}>{escape(content)}</{name}>")


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def _svg(parts: Iterable[Markup], height: float, label: str) -> Markup:
    box = f"0 0 {WIDTH} {height:.0f}"
    return tag("svg", Markup("").join(parts), viewBox=box, role="img", aria_label=label)


def _text(x: float, y: float, content: str, anchor: str = "start", class_: str = "") -> Markup:
    return tag("text", content, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def colour(i: int) -> str:
    """The classes of the i-th series."""
    return f"s{i % SERIES}" + (" dashed" if i >= SERIES else "")


# -- scales --------------------------------------------------------------------------------------------


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover the range, steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = next(s for e in range(-12, 16) for s in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if (high - low) / s <= most - 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover the range, two to five of them, closer together where the range is narrow."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        every = [s * 10.0**e for e in range(first, last + 1) for s in steps]
        inside = [t for i, t in enumerate(every)
                  if (i + 1 >= len(every) or every[i + 1] > low) and (i == 0 or every[i - 1] < high)]  # fmt: skip
        if 2 <= len(inside) <= 5:
            break
    return inside


def number(value: float) -> str:
    """For an axis: at most three significant digits, and k, M or G."""
    for unit, of in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= of:
            return f"{value / of:.3g}{unit}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class _Axes:
    """Where values lie on the paper."""

    left: float
    top: float
    right: float
    bottom: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    log_x: bool = False

    def x(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log_x else v for v in (self.x_ticks[0], self.x_ticks[-1], value))
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def draw(self, x_label: str) -> list[Markup]:
        parts = []
        for t in self.y_ticks:
            parts.append(_line(self.left, self.y(t), self.right, self.y(t), "grid"))
            parts.append(_text(self.left - 5, self.y(t) + 3.5, number(t), "end", "tick"))
        for t in self.x_ticks:
            parts.append(_line(self.x(t), self.bottom, self.x(t), self.bottom + 3, "axis"))
            parts.append(_text(self.x(t), self.bottom + 15, number(t), "middle", "tick"))
        parts.append(_line(self.left, self.bottom, self.right, self.bottom, "axis"))
        parts.append(_text((self.left + self.right) / 2, self.bottom + 30, x_label, "middle", "label"))
        return parts


def _axes(xs: Sequence[float], ys: Sequence[float], height: float, log_x: bool) -> _Axes:
    x_ticks = log_ticks(min(xs), max(xs)) if log_x else ticks(min(xs), max(xs))
    y_ticks = ticks(min(ys), max(ys))
    left = 12 + LETTER * max(len(number(t)) for t in y_ticks)
    return _Axes(left, 8, WIDTH - 14, height - 36, x_ticks, y_ticks, log_x)


# -- charts --------------------------------------------------------------------------------------------


def curves(
    series: Sequence[Series], x_label: str, label: str, levels: Mapping[str, float] | None = None, log_x: bool = False
) -> Markup:
    """Curves over a common x, with dashed levels across. What colour is which stands in the page's legend."""
    levels = levels or {}
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [y for s in series for pair in s.band for y in pair]
    axes = _axes(xs, [*ys, *levels.values()], 240, log_x)
    parts = axes.draw(x_label)
    parts += _levels(axes, levels)
    for i, s in enumerate(series):
        own = s.css or colour(i)
        if s.band:
            outline = [(x, high) for (x, _), (_, high) in zip(s.points, s.band, strict=True)]
            outline += [(x, low) for (x, _), (low, _) in zip(s.points, s.band, strict=True)][::-1]
            parts.append(tag("path", d=_path(axes, outline) + "Z", class_=f"area {own}"))
        title = tag("title", s.name)
        parts.append(tag("path", title, d=_path(axes, s.points), class_=f"curve {own}"))
        if len(s.points) == 1:
            parts.append(tag("circle", title, cx=axes.x(s.points[0][0]), cy=axes.y(s.points[0][1]), r=3, class_=own))
    return _svg(parts, 240, label)


def scatter(marks: Sequence[Mark], x_label: str, label: str, levels: Mapping[str, float] | None = None) -> Markup:
    """Named points on a logarithmic x, with whiskers, and levels across for what has no place on it."""
    levels = levels or {}
    ys = [y for mark in marks for y in (mark.low, mark.high)]
    axes = _axes([mark.x for mark in marks], [*ys, *levels.values()], 260, log_x=True)
    parts = axes.draw(x_label)
    parts += _levels(axes, levels)
    for i, mark in enumerate(marks):
        x, y, own = axes.x(mark.x), axes.y(mark.y), colour(i)
        if mark.high > mark.low:
            parts.append(_line(x, axes.y(mark.low), x, axes.y(mark.high), f"whisker {own}"))
        parts.append(tag("circle", tag("title", mark.name), cx=x, cy=y, r=4.5, class_=own))
    return _svg(parts, 260, label)


def _levels(axes: _Axes, levels: Mapping[str, float]) -> list[Markup]:
    parts = []
    for name, y in levels.items():
        parts.append(_line(axes.left, axes.y(y), axes.right, axes.y(y), "level"))
        parts.append(_text(axes.right, axes.y(y) - 4, name, "end", "tick"))
    return parts


def _path(axes: _Axes, points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in points)


def bars(groups: Sequence[tuple[str, Sequence[float]]], css: Sequence[str], x_label: str, label: str) -> Markup:
    """Horizontal bars, a group for each name, from 0 to 100."""
    thick, gap = (9.0, 9.0) if len(css) < 3 else (6.0, 8.0)
    left = _margin([name for name, _ in groups])
    step = thick * len(css) + gap
    bottom = 6 + step * len(groups)
    axes = _Axes(left, 6, WIDTH - 14, bottom, [0, 25, 50, 75, 100], [0, 1])
    parts = [_line(axes.x(t), 6, axes.x(t), bottom, "grid") for t in axes.x_ticks]
    parts += [_text(axes.x(t), bottom + 14, number(t), "middle", "tick") for t in axes.x_ticks]
    parts.append(_text((left + WIDTH - 14) / 2, bottom + 29, x_label, "middle", "label"))
    for i, (name, values) in enumerate(groups):
        top = 6 + i * step + gap / 2
        parts.append(_text(left - 6, top + thick * len(css) / 2 + 3.5, _cut(name), "end", "tick"))
        for k, (value, own) in enumerate(zip(values, css, strict=True)):
            title = tag("title", f"{name}: {value:.1f}")
            width = axes.x(value) - left
            y = top + k * thick
            parts.append(tag("rect", title, x=left, y=y, width=width, height=thick - 1, class_=own))
    return _svg(parts, bottom + 36, label)


def forest(rows: Sequence[tuple[str, float, float, float]], x_label: str, label: str) -> Markup:
    """(name, mean, low, high): dots with intervals around a line at zero; hollow where the interval crosses it."""
    left = _margin([name for name, *_ in rows])
    bottom = 8 + 22.0 * len(rows)
    x_ticks = ticks(min(0.0, *(r[2] for r in rows)), max(0.0, *(r[3] for r in rows)))
    axes = _Axes(left, 8, WIDTH - 14, bottom, x_ticks, [0, 1])
    parts = [_line(axes.x(t), 8, axes.x(t), bottom, "grid") for t in x_ticks]
    parts += [_text(axes.x(t), bottom + 14, number(t), "middle", "tick") for t in x_ticks]
    parts.append(_line(axes.x(0), 8, axes.x(0), bottom, "axis"))
    parts.append(_text((left + WIDTH - 14) / 2, bottom + 29, x_label, "middle", "label"))
    for i, (name, mean, low, high) in enumerate(rows):
        y = 8 + 22.0 * i + 11
        title = tag("title", f"{name}: {mean:+.1f} ({low:+.1f} to {high:+.1f})")
        kind = "open" if low <= 0 <= high else "below" if high < 0 else "above"
        parts.append(_text(left - 6, y + 3.5, _cut(name), "end", "tick"))
        parts.append(_line(axes.x(low), y, axes.x(high), y, f"whisker {kind}"))
        parts.append(tag("circle", title, cx=axes.x(mean), cy=y, r=4.5, class_=kind))
    return _svg(parts, bottom + 36, label)


def heat(rows: Sequence[tuple[str, Sequence[int]]], groups: Sequence[tuple[str, int]], most: int, label: str) -> Markup:
    """Whole numbers from 0 to ``most`` as cells; ``groups`` names runs of columns: (name, how many)."""
    left = _margin([name for name, _ in rows])
    n = sum(count for _, count in groups)
    width, height = (WIDTH - 6 - left) / n, 13.0
    bottom = 4 + height * len(rows)
    by_level: dict[int, list[str]] = {}
    parts = []
    for i, (name, values) in enumerate(rows):
        parts.append(_text(left - 6, 4 + height * i + 9.5, _cut(name), "end", "tick"))
        for j, value in enumerate(values):
            by_level.setdefault(value, []).append(
                f"M{left + j * width:.1f} {4 + i * height:g}h{width:.2f}v12h-{width:.2f}z"
            )
    for value, cells in sorted(by_level.items()):  # one path for each level: an element a cell would be a large page
        share = value / most if most else 0.0
        parts.append(tag("path", d="".join(cells), class_="cell", style=f"--level:{share:.3f}"))
    x, before = left, -math.inf
    for name, count in groups:
        parts.append(_line(x, 2, x, bottom + 3, "divide"))
        middle = x + count * width / 2
        if middle - before > LETTER * len(name) + 6:
            parts.append(_text(middle, bottom + 13, name, "middle", "tick"))
            before = middle
        x += count * width
    parts.append(_text((left + WIDTH) / 2, bottom + 28, "layer", "middle", "label"))
    return _svg(parts, bottom + 34, label)


def stacked(rows: Sequence[tuple[str, Mapping[str, float]]], parts_css: Mapping[str, str], label: str) -> Markup:
    """Horizontal bars of parts, all rows on one scale; the total stands at the end of each."""
    left = _margin([name for name, _ in rows])
    totals = [sum(own.values()) for _, own in rows]
    scale = (WIDTH - left - 70) / max(*totals, 1.0)
    drawn = []
    for i, ((name, own), total) in enumerate(zip(rows, totals, strict=True)):
        y, x = 6 + 26.0 * i, left
        drawn.append(_text(left - 6, y + 12.5, _cut(name), "end", "tick"))
        for part, n_bytes in own.items():
            title = tag("title", f"{part}: {size(n_bytes)}")
            drawn.append(tag("rect", title, x=x, y=y, width=n_bytes * scale, height=18, class_=parts_css[part]))
            x += n_bytes * scale
        drawn.append(_text(x + 5, y + 12.5, size(total), "start", "tick"))
    return _svg(drawn, 8 + 26.0 * len(rows), label)


def _margin(names: Sequence[str]) -> float:
    return 10 + LETTER * max((len(_cut(name)) for name in names), default=0)


def _cut(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"

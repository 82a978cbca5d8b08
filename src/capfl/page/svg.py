"""What charts are drawn with: elements, scales and axes of inline SVG.

Colours are CSS classes, so that the page's light, dark and print styles hold in them. Every chart is drawn in a box
``WIDTH`` units wide, which fits a phone; larger screens scale it up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 400
LETTER = 6.3  # mean width of a letter of the charts' text, for margins
SERIES = 8  # colours; the next ones are the same, dashed


def tag(name: str, content: object = "", **attributes: object) -> Markup:
    """One element. A trailing underscore and dashes in names: ``class_``, ``text_anchor``."""
    words = [
        f'{key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items() if value not in (None, "")
    ]  # fmt: skip
    return Markup(f"<{' '.join([name, *words])}>{escape(content)}</{name}>")


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def drawing(parts: Iterable[Markup], height: float, label: str) -> Markup:
    box = f"0 0 {WIDTH} {height:.0f}"
    return tag("svg", Markup("").join(parts), viewBox=box, role="img", aria_label=label)


def text(x: float, y: float, content: str, anchor: str = "start", class_: str = "") -> Markup:
    return tag("text", content, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
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
class Axes:
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
            parts.append(line(self.left, self.y(t), self.right, self.y(t), "grid"))
            parts.append(text(self.left - 5, self.y(t) + 3.5, number(t), "end", "tick"))
        for t in self.x_ticks:
            parts.append(line(self.x(t), self.bottom, self.x(t), self.bottom + 3, "axis"))
            parts.append(text(self.x(t), self.bottom + 15, number(t), "middle", "tick"))
        parts.append(line(self.left, self.bottom, self.right, self.bottom, "axis"))
        parts.append(text((self.left + self.right) / 2, self.bottom + 30, x_label, "middle", "label"))
        return parts


def axes_of(xs: Sequence[float], ys: Sequence[float], height: float, log_x: bool) -> Axes:
    x_ticks = log_ticks(min(xs), max(xs)) if log_x else ticks(min(xs), max(xs))
    y_ticks = ticks(min(ys), max(ys))
    left = 12 + LETTER * max(len(number(t)) for t in y_ticks)
    return Axes(left, 8, WIDTH - 14, height - 36, x_ticks, y_ticks, log_x)


def path(axes: Axes, points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in points)


def margin(names: Sequence[str]) -> float:
    return 14 + LETTER * max((len(cut(name)) for name in names), default=0)


def cut(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"

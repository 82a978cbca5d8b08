"""The figures of a page and of a comparison, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

INK = "#24282c"  # of lines and letters; on a page it becomes the page's own colour of text
COLOURS = {  # of models, to be seen on white and on black
    "base": "#8f969c",
    "local_only": "#d0814c",
    "shared": "#4a80b4",
    "personal": "#3a9a78",
    "centralised": "#b0478c",
}
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "text.parse_math": False,  # a name may have dollars
    "svg.fonttype": "none",  # letters stay letters
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    **dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK),
}
WIDTH, NARROW = 5.2, 4.0  # inches, of a file and of a figure of a page, whose letters are read on a phone, too
NO_METADATA = dict.fromkeys(["Creator", "Date", "Format", "Type"])  # equal data, equal file


@contextmanager
def drawing(
    name: str, height: float, panels: Sequence[int] = (1,), width: float = NARROW
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure with panels of these relative heights. Its name tells its marks from those of other figures."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(len(panels), squeeze=False, height_ratios=panels)[:, 0])


def inline(figure: Figure, label: str) -> Markup:
    """The figure as an element of a page. To be called while its ``drawing`` is open."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
    _, _, svg = file.getvalue().partition("<svg ")
    return Markup(f'<svg role="img" aria-label="{escape(label)}" ' + svg.replace(INK, "currentColor"))


def bars(rows: Sequence[tuple[str, Sequence[float]]], models: Mapping[str, str], label: str, x_label: str) -> Markup:
    """Horizontal bars, a group for each name; ``models`` has the key and the words of each bar.

    Args:
        x_label: of per cent, the axis goes to 100.
    """
    thick = 0.8 / len(models)
    with drawing(label, (0.8 if len(models) < 4 else 1.0) + len(rows) * max(0.2, 0.11 * len(models))) as (
        figure,
        (axes,),
    ):
        for k, (model, words) in enumerate(models.items()):
            places = [i + k * thick for i in range(len(rows))]
            axes.barh(places, [values[k] for _, values in rows], 0.9 * thick, label=words, color=COLOURS[model])
        axes.set_yticks([i + 0.4 - thick / 2 for i in range(len(rows))], [name for name, _ in rows])
        axes.invert_yaxis()
        axes.set(xlim=(0, 100 if x_label == "%" else None), xlabel=x_label)
        axes.tick_params("y", length=0)
        figure.legend(loc="outside upper left", ncols=min(len(models), 3))
        return inline(figure, label)


def curve(
    points: Sequence[tuple[float, float, float, float]], x_label: str, label: str, level: float | None = None
) -> Markup:
    """(x, y, lowest, highest) of a curve with a band, and a dotted line of chance across."""
    xs, ys, low, high = zip(*points, strict=True)
    with drawing(label, 2.6) as (figure, (axes,)):
        axes.plot(xs, ys, color=COLOURS["shared"], marker="." if len(xs) < 40 else "")
        axes.fill_between(xs, low, high, color=COLOURS["shared"], alpha=0.2, linewidth=0)
        if level is not None:
            axes.axhline(level, color=COLOURS["base"], linestyle=":")
            axes.annotate("chance", (xs[-1], level), ha="right", va="bottom")
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.locator_params("x", integer=True)
        return inline(figure, label)


def scores(
    panels: Mapping[str, Mapping[str, Sequence[float]]], x_label: str, path: Path, plain: Collection[str] = ()
) -> None:
    """A file with a panel for each title: of each name, the mean as a bar and every value as a dot.

    Args:
        plain: titles of panels whose values are not per cent.
    """
    height = sum(0.6 + 0.22 * len(rows) for rows in panels.values()) + 0.3
    with drawing(path.stem, height, [len(rows) for rows in panels.values()], WIDTH) as (figure, every):
        for axes, (title, rows) in zip(every, panels.items(), strict=True):
            for name, values in rows.items():
                axes.barh(name, fmean(values) if values else 0, 0.7, color=COLOURS["shared"], alpha=0.6)
                axes.plot(values, [name] * len(values), ".", color=INK)
            axes.invert_yaxis()
            axes.set(xlim=(0, None if title in plain else 100), title=title)
        every[-1].set_xlabel(x_label)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata=NO_METADATA)

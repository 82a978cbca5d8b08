"""Tables for people: in terminals of any width, in Markdown and on pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from capfl import metrics
from capfl.errors import number
from capfl.report.summary import MODELS, ClientRow, Summary
from capfl.types import EVERYBODY, ClientId

MOST_ROWS = 40  # clients in the table; summary.json has all
METRICS_TITLE = "means over clients, by every metric"
OPTIONAL = ("group", "metric", "chance", "rank")  # columns that are left out where all clients have the same


@dataclass(frozen=True)
class Table:
    """A table of short cells, none of which is ever cut. ``foot`` has the rows below the line.

    Where a terminal is too narrow, columns move closer together, and then the table goes on below itself with the
    first column, which names the rows, again.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[Sequence[str]] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        gap = 2 if len(self._blocks(options.max_width, 2)) == 1 else 1
        for n, columns in enumerate(self._blocks(options.max_width, gap)):
            if n:
                yield Text()
            table = RichTable(box=box.SIMPLE, padding=(0, gap - 1, 0, 0), show_edge=False, pad_edge=False)
            for column in columns:
                table.add_column(Text(self.heads[column]), justify="right" if column else "left", overflow="fold")
            for row in self.rows:
                table.add_row(*(Text(row[column]) for column in columns))
            table.add_section()
            for row in self.foot:
                table.add_row(*(Text(row[column], style="bold") for column in columns))
            yield table

    def _blocks(self, width: int, gap: int) -> list[list[int]]:
        """Columns, as many side by side as the width holds, each time after the first column."""
        lines = [self.heads, *self.rows, *self.foot]
        widths = [max(cell_len(line[column]) for line in lines) + gap for column in range(len(self.heads))]
        first = min(widths[0], width // 2)  # longer names are folded
        blocks: list[list[int]] = []
        left = 0
        for column in range(1, len(self.heads)):
            if not blocks or widths[column] > left:
                blocks.append([0])
                left = width + gap - first
            blocks[-1].append(column)
            left -= widths[column]
        return blocks

    def markdown(self) -> str:
        lines = [self.heads, ["---"] * len(self.heads), *self.rows, *self.foot]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def html(self) -> Markup:
        """A table element; every cell is escaped."""
        parts = [("thead", "th", [self.heads]), ("tbody", "td", self.rows), ("tfoot", "td", self.foot)]
        inside = []
        for part, tag, rows in parts:
            cells = ([_element("th", row[:1]), *(_element(tag, [cell]) for cell in row[1:])] for row in rows)
            inside.append(_element(part, (_element("tr", row) for row in cells)))
        return _element("table", inside)


def _element(tag: str, content: Iterable[str]) -> Markup:
    return Markup(f"<{tag}>{{}}</{tag}>").format(Markup("").join(content))


# -- the clients of a run --------------------------------------------------------------------------------


def summary_table(summary: Summary, said: Sequence[str]) -> Group:
    """What a run prints in the end: clients and means, all metrics, the groups, and what is said of them."""
    groups = list(map(Text, group_lines(summary)))
    title = Text(f"{summary.method}, {number(summary.rounds, 'round')}: {scored_words(summary)}", style="italic")
    others = metrics_table(summary)
    more: list[RenderableType] = [Text(), Text(METRICS_TITLE, style="italic"), others] if others else []
    return Group(title, client_table(summary), *more, *([Text(), *groups] if groups else []), Text(), *map(Text, said))


def client_table(summary: Summary, most: int = MOST_ROWS) -> Table:
    """A line for each client, by its first metric, then the means over clients of each of these.

    Group, metric, chance and rank have columns of their own where they differ between clients.
    """
    rows = [_cells(row, summary.models) for row in summary.rows]
    heads = [head for head in rows[0] if head not in OPTIONAL or len({row[head] for row in rows}) > 1]
    foot = [cells for metric in summary.leading for cells in _means(summary, metric)]
    lines = [[[cells.get(head, "") for head in heads] for cells in part] for part in (rows, foot)]
    return Table(heads, _first(most, lines[0]), lines[1])


def metrics_table(summary: Summary) -> Table | None:
    """A line for each metric with the means over the clients that it measures; None: there is one metric alone."""
    if len(summary.metrics) == len(summary.leading):
        return None
    models = summary.models
    rows = [
        [unit(metric), *(shown(summary.mean(model, metric), metric) for model in models)] for metric in summary.metrics
    ]
    return Table(["metric", *(MODELS[model] for model in models)], rows)


def _cells(row: ClientRow, models: Sequence[str]) -> dict[str, str]:
    """What is in the columns for one client; scores come first, as a phone shows few columns."""
    return {
        "client": row.id,
        "group": row.group or EVERYBODY,
        "metric": row.metric,
        **{MODELS[model]: shown(row.value(model), row.metric) for model in models},
        "chance": percent(row.chance),
        "rank": f"{row.rank:.3g}",
        "train": str(row.n_train),
        "test": str(row.n_test),
        "up": size(row.bytes_up),
        "down": size(row.bytes_down),
    }


def _means(summary: Summary, metric: str) -> list[dict[str, str]]:
    """What is in the columns below the clients, for those whose first metric it is; ``all`` has sums."""
    rows = [row for row in summary.rows if row.metric == metric]
    sums = {head: str(sum(getattr(row, f"n_{head}") for row in rows)) for head in ("train", "test")}
    sums |= {head: size(sum(getattr(row, f"bytes_{head}") for row in rows)) for head in ("up", "down")}
    found = {model: summary.statistics(model, metric) or {} for model in summary.models}
    lines = {"mean": "mean", "± 95 %": "ci95", "worst": "worst", "spread": "spread"}
    below = [
        {"client": name, "metric": metric}
        | {MODELS[model]: shown(own.get(key), metric) for model, own in found.items()}
        for name, key in lines.items()
        if any(key in own for own in found.values())
    ]
    return [*below, {"client": "all", "metric": metric} | sums]


def group_lines(summary: Summary) -> list[str]:
    """Who is with whom, and since when."""
    groups, lines = [group for group in summary.groups if group.name != EVERYBODY], []
    for group in groups[:MOST_ROWS]:
        clients = number(len(group.members), "client")
        lines.append(f"{group.name}, {clients} since round {group.since}: {listed(group.members)}")
    more = [f"and {len(groups) - MOST_ROWS} more groups, see summary.json"] if len(groups) > MOST_ROWS else []
    return [*lines, *more]


def listed(names: Sequence[str], most: int = MOST_ROWS) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def scored_words(summary: Summary) -> str:
    """What the scores of clients are."""
    every = " or ".join(
        metrics.metric(name).words + (", %" if metrics.metric(name).is_share else ", less is better")
        for name in summary.leading
    )
    return f"{every}; on each client's own test items"


# -- the messages of a run -------------------------------------------------------------------------------


def bytes_table(summary: Summary, direction: str) -> Table:
    """A line for each client: its messages of one direction, their bytes, and the parts that they are made of."""
    parts = [part for part, n in summary.parts(direction).items() if n]
    counts, of_client = Counter[ClientId](), dict[ClientId, Counter[str]]()
    for entry in summary.messages(direction):
        counts[entry.client] += 1
        of_client.setdefault(entry.client, Counter()).update(entry.parts)

    def line(name: str, messages: int, own: Mapping[str, int]) -> list[str]:
        return [name, str(messages), *map(size, [sum(own.values()), *(own.get(part, 0) for part in parts)])]

    head = {"up": "left the site", "down": "came back"}[direction]
    clients = sorted({entry.client for entry in summary.ledger})
    rows = _first(MOST_ROWS, [line(client, counts[client], of_client.get(client, {})) for client in clients])
    return Table([head, "messages", "bytes", *parts], rows, [line("all", counts.total(), summary.parts(direction))])


# -- cells -----------------------------------------------------------------------------------------------


def _first(most: int, rows: Sequence[list[str]]) -> list[list[str]]:
    """The first rows, and a line that counts the others."""
    more = [[f"and {len(rows) - most} more", *[""] * (len(rows[0]) - 1)]] if len(rows) > most else []
    return [*rows[:most], *more]


def shown(value: float | None, metric: str) -> str:
    """A value of a metric: per cent, or a perplexity with three digits; nothing where there is none."""
    if value is None or metrics.metric(metric).is_share:
        return percent(value)
    return f"{value:#.3g}".removesuffix(".") if value < 1e5 else f"{value:.2e}"


def with_unit(value: float, metric: str) -> str:
    """``shown``, where no head says that it is per cent."""
    return shown(value, metric) + (" %" if metrics.metric(metric).is_share else "")


def apart(difference: float, metric: str) -> str:
    """A difference of two values of a metric, with its sign."""
    return f"{100 * difference:+.1f} points" if metrics.metric(metric).is_share else f"{difference:+.3g}"


def unit(metric: str) -> str:
    """The head of a column, or row, of its values."""
    return f"{metric}, %" if metrics.metric(metric).is_share else metric


def percent(value: float | None) -> str:
    """With one decimal; nothing where there is no value."""
    return "" if value is None else f"{100 * value:.1f}"


def size(n_bytes: float) -> str:
    """Decimal units: 1 kB is 1000 bytes."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"


def duration(seconds: float) -> str:
    """The two largest of hours, minutes and seconds, or tenths of a second."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"

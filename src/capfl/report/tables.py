"""Tables for people, in terminals of any width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from capfl.report.summary import MODELS, ClientRow, GroupRow, Summary
from capfl.types import EVERYBODY

MOST_ROWS = 40  # clients in the table; summary.json has all


@dataclass(frozen=True)
class Table:
    """A table of short cells, none of which is ever cut.

    Where a terminal is too narrow, columns move closer together, and then the table goes on below itself with the
    first column, which names the rows, again. ``foot`` has the rows below the line.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[Sequence[str]] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        wide, close = self._blocks(options.max_width, 2), self._blocks(options.max_width, 1)
        gap, blocks = (2, wide) if len(wide) == 1 else (1, close)
        for n, columns in enumerate(blocks):
            if n:
                yield Text()
            yield self._block(columns, gap)

    def _block(self, columns: Sequence[int], gap: int) -> RichTable:
        padding = (0, gap - 1, 0, 0)  # the box has a space between columns, too
        table = RichTable(box=box.SIMPLE, padding=padding, show_edge=False, pad_edge=False)
        for column in columns:
            table.add_column(Text(self.heads[column]), justify="right" if column else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(row[column]) for column in columns))
        table.add_section()
        for n, row in enumerate(self.foot):
            table.add_row(*(Text(row[column], style="" if n else "bold") for column in columns))
        return table

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


def listing(rows: Sequence[Mapping[str, str]]) -> Group:
    """A block for each row: the first value as a heading, then a line for each key, folded where it is too long."""
    blocks: list[RenderableType] = []
    for row in rows:
        (_, name), *rest = row.items()
        table = RichTable.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in rest:
            table.add_row(Text(key), Text(value))
        blocks += [Text(name, style="bold"), Padding(table, (0, 0, 1, 2))]
    return Group(*blocks)


def summary_table(summary: Summary) -> Group:
    """What a run prints in the end: clients and means, the groups, and what the words mean."""
    groups = list(map(Text, group_lines(summary)))
    title = Text(f"{summary.method}, {summary.rounds} rounds: {scored_words(summary)}, %", style="italic")
    return Group(
        title, client_table(summary), *([Text(), *groups] if groups else []), Text(), *map(Text, notes(summary))
    )


def client_table(summary: Summary, most: int = MOST_ROWS) -> Table:
    """A line for each client, then the means over clients of one metric, in per cent.

    Group, metric, chance and rank have columns of their own where they differ between clients.
    """
    models = summary.models
    optional = {
        "group": bool(named_groups(summary)),
        "metric": len(summary.metrics) > 1,
        "chance": len({row.chance for row in summary.rows}) > 1,
        "rank": len({row.rank for row in summary.rows}) > 1,
    }
    shown = [name for name, wanted in optional.items() if wanted]
    heads = ["client", "train", "test", *shown, *(MODELS[model] for model in models), "up", "down"]
    rows = [_client(row, shown, models) for row in summary.rows[:most]]
    if len(summary.rows) > most:
        rows.append([f"and {len(summary.rows) - most} more", *[""] * (len(heads) - 1)])
    foot = [line for metric in summary.metrics for line in _means(summary, metric, shown, models)]
    return Table(heads, rows, foot)


def _client(row: ClientRow, shown: Sequence[str], models: Sequence[str]) -> list[str]:
    extra = {
        "group": row.group or EVERYBODY,
        "metric": row.metric,
        "chance": _score(row.chance),
        "rank": f"{row.rank:.3g}",
    }
    scores = [_score(getattr(row, model)) for model in models]
    sizes = [size(row.bytes_up), size(row.bytes_down)]
    return [row.id, str(row.n_train), str(row.n_test), *(extra[name] for name in shown), *scores, *sizes]


def _means(summary: Summary, metric: str, shown: Sequence[str], models: Sequence[str]) -> list[list[str]]:
    """The lines below the clients, for one metric. Bytes are sums."""
    rows = summary.of_metric(metric)
    counts = [str(sum(row.n_train for row in rows)), str(sum(row.n_test for row in rows))]
    extra = [metric if column == "metric" else "" for column in shown]
    sizes = [size(sum(row.bytes_up for row in rows)), size(sum(row.bytes_down for row in rows))]
    found = [summary.statistics(model, metric) for model in models]

    def line(name: str, key: str) -> list[str]:
        scores = [percent(f[key]) if f else "" for f in found]
        return ["mean", *counts, *extra, *scores, *sizes] if key == "mean" else [
            name, "", "", *extra, *scores, "", ""]  # fmt: skip

    return [line("mean", "mean"), line("± 95 %", "ci95"), line("worst", "worst"), line("spread", "spread")]


def named_groups(summary: Summary) -> list[GroupRow]:
    """The groups, without that of all clients."""
    return [group for group in summary.groups if group.name != EVERYBODY]


def group_lines(summary: Summary) -> list[str]:
    """Who is with whom, and since when."""
    groups = named_groups(summary)
    more = [f"and {len(groups) - MOST_ROWS} more groups, see summary.json"] if len(groups) > MOST_ROWS else []
    return [*(_group_line(group) for group in groups[:MOST_ROWS]), *more]


def _group_line(group: GroupRow) -> str:
    clients = f"{len(group.members)} {'client' if len(group.members) == 1 else 'clients'}"
    return f"group {group.name}, {clients} since round {group.since}: {listed(group.members)}"


def listed(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:MOST_ROWS]) + (f" and {len(names) - MOST_ROWS} more" if len(names) > MOST_ROWS else "")


def scored_words(summary: Summary) -> str:
    """What scores are the share of."""
    words = {"accuracy": "right answers", "token accuracy": "answer tokens predicted"}
    shares = " or ".join(words.get(metric, metric) for metric in summary.metrics)
    return f"{shares} on each client's own test items"


def notes(summary: Summary) -> list[str]:
    """What the columns mean, where the adapters lie whose scores they are, and what is missing."""
    found = [*_levels(summary), *_adapters(summary)]
    found.append("± comes from the choice of test items, not from the seed; spread: standard deviation over clients")
    found.append("up, down: bytes from and to the client in the whole run, headers and final evaluation included")
    if summary.failures:
        found.append(f"{summary.failures} failed replies, see rounds.jsonl")
    if absent := sorted({f.client for f in summary.evaluation_failures} - {row.id for row in summary.rows}):
        found.append(f"no row for {', '.join(absent)}, which did not answer in the end, see summary.json")
    if summary.epsilon is not None:
        found.append(
            f"what clients' changes add to the shared adapter is private to epsilon {summary.epsilon:.3g} at delta "
            f"{summary.delta:g}; losses, counts and personal adapters are not covered"
        )
    return found


def _levels(summary: Summary) -> list[str]:
    """What takes no model."""
    lines = []
    for metric in summary.metrics:
        chance, majority = summary.level("chance", metric), summary.level("majority", metric)
        if chance is not None and majority is not None:
            lines.append(f"chance {percent(chance)} %, always the most frequent answer {percent(majority)} %")
    return lines


def _adapters(summary: Summary) -> list[str]:
    """Which adapter a score is of, by the folder that `capfl eval` takes."""
    shared = {row.adapters["shared"] for row in summary.rows if "shared" in row.adapters}
    lines = []
    if shared - {"adapters/global"}:
        lines.append("shared: the adapter of the client's group, in adapters/groups/GROUP")
    if "adapters/global" in shared:
        lines.append("shared: the adapter of all clients, in adapters/global")
    if any("personal" in row.adapters for row in summary.rows):
        lines.append("personal: the client's own adapter, in adapters/clients/CLIENT or at its site")
    return [*lines, "each can be scored on other data: capfl eval RUN/adapters/..."] if lines else []


def _score(value: float | None) -> str:
    return "" if value is None else percent(value)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def size(n_bytes: float) -> str:
    """Decimal units: 1 kB is 1000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    raise AssertionError

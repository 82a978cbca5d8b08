"""What the terminal shows of a summary."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from capfl.report.summary import ClientRow, Summary
from capfl.report.tables import size, summary_table
from capfl.types import Entry, Failure

ROW = ClientRow("a", 7, 4, 0.25, 0.5, 0.75, None, None, 8.0, {}, 0.25, 0.5, 1500, 2_000_000)
LEDGER = (
    Entry(1, "a", "up", 1500, {"header": 60, "values": 1440}),
    Entry(1, "a", "down", 2_000_000, {"header": 60, "values": 1_999_940}),
)


def summary(*rows: ClientRow) -> Summary:
    return Summary("fedit", "accuracy", 3, rows, LEDGER, 0, (), {}, 1.0, 10**9)


def shown(what: Summary) -> list[list[str]]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary_table(what))
    return [line.split() for line in capture.get().splitlines()]


def test_one_client() -> None:
    lines = shown(summary(ROW))
    assert ["client", "train", "test", "base", "global", "personal", "up", "down"] in lines
    assert ["a", "7", "4", "25.0", "50.0", "75.0", "1.5", "kB", "2", "MB"] in lines
    assert ["mean", "7", "4", "25.0", "50.0", "75.0", "1.5", "kB", "2", "MB"] in lines
    # 1.96 sqrt(p (1 - p) / n)
    assert ["±", "95", "%", "42.4", "49.0", "42.4"] in lines


def test_chance_and_rank_have_columns_where_clients_differ() -> None:
    lines = shown(summary(ROW, replace(ROW, id="b", chance=0.5, rank=6.5, personal=0.25)))
    assert ["client", "train", "test", "chance", "rank", "base", "global", "personal", "up", "down"] in lines
    assert ["b", "7", "4", "50.0", "6.5", "25.0", "50.0", "25.0", "1.5", "kB", "2", "MB"] in lines
    assert ["worst", "25.0", "50.0", "25.0"] in lines
    assert ["spread", "0.0", "0.0", "25.0"] in lines


def test_many_clients_are_cut_and_counted() -> None:
    lines = shown(summary(*[replace(ROW, id=f"c{k:03d}") for k in range(100)]))
    assert ["and", "60", "more"] in lines
    assert max(len(line) for line in lines) < 30


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (43_000_000, "43 MB")])
def test_sizes_are_decimal(n: int, text: str) -> None:
    assert size(n) == text


def test_a_client_that_did_not_answer_in_the_end_is_named() -> None:
    whole = replace(summary(ROW), evaluation_failures=(Failure("b", "power", "gone"), Failure("a", "power", "back")))
    said = " ".join(word for line in shown(whole) for word in line)
    assert "no row for b, which did not answer in the end, see summary.json" in said
    assert "no row" not in " ".join(word for line in shown(summary(ROW)) for word in line)

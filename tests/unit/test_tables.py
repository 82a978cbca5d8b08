"""What a summary says: means within a metric, groups, adapters; and its table in terminals of any width."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from capfl.report.summary import ClientRow, GroupRow, Summary, clearly_worse, group_rows
from capfl.report.tables import Table, size, summary_table
from capfl.types import Entry, Failure, RoundRecord

ROW = ClientRow("a", 7, 4, 0.25, 0.5, 0.75, None, None, 8.0, {}, 0.25, 0.5, 1500, 2_000_000)
LEDGER = (
    Entry(1, "a", "up", 1500, {"header": 60, "values": 1440}),
    Entry(4, "a", "down", 2_000_000, {"header": 60, "values": 1_999_940}),
)


def summary(*rows: ClientRow, **more: object) -> Summary:
    made = Summary("fedit", 3, rows or (ROW,), LEDGER, 0, (), {}, 1.0, 10**9)
    return replace(made, **more)


def shown(what: object, width: int = 200) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(what)
    return capture.get().splitlines()


def words(what: Summary) -> list[str]:
    return [" ".join(line.split()) for line in shown(summary_table(what))]


def test_one_client() -> None:
    lines = words(summary())
    assert "client train test base shared personal up down" in lines
    assert "a 7 4 25.0 50.0 75.0 1.5 kB 2 MB" in lines
    assert "mean 7 4 25.0 50.0 75.0 1.5 kB 2 MB" in lines
    assert "± 95 % 42.4 49.0 42.4" in lines  # 1.96 sqrt(p (1 - p) / n)
    assert "chance 25.0 %, always the most frequent answer 50.0 %" in lines
    assert "personal: the client's own adapter, in adapters/clients/CLIENT or at its site" in "\n".join(lines)
    assert any(line.endswith("for each client and round 500 B up, 667 kB down") for line in lines)


def test_groups_are_shown_with_their_members_and_adapters() -> None:
    rows = [replace(ROW, id="b", group="x"), replace(ROW, id="c", group="x", chance=0.5), ROW]
    made = summary(*rows, groups=(GroupRow("x", ("b", "c"), 2),))
    lines = words(made)
    assert "client train test group chance base shared personal up down" in lines
    assert "b 7 4 x 25.0 25.0 50.0 75.0 1.5 kB 2 MB" in lines
    assert "a 7 4 everybody 25.0 25.0 50.0 75.0 1.5 kB 2 MB" in lines
    assert "group x, 2 clients since round 2: b, c" in lines
    said = made.to_json()
    assert said["groups"] == ({"name": "x", "members": ("b", "c"), "since": 2},)
    assert said["clients"][0]["adapters"] == {"shared": "adapters/groups/x", "personal": "adapters/clients/b"}
    assert said["clients"][2]["adapters"]["shared"] == "adapters/global"


@pytest.mark.parametrize(
    ("history", "since"),
    [
        (["xx ", "xxx", "xxx"], {"x": 2}),  # the third client came in round 2
        (["xxx", "xxy", "xxx"], {"x": 3}),
        (["xxy", "xxy", "xxy"], {"x": 1, "y": 1}),
        (["   ", "   "], {}),
    ],
)
def test_a_group_exists_since_its_members_are_together(history: list[str], since: dict[str, int]) -> None:
    records = [
        RoundRecord(n, (), {}, {}, (), (), 0.0, groups={c: g for c, g in zip("abc", names, strict=True) if g != " "})
        for n, names in enumerate(history, start=1)
    ]
    assert {group.name: group.since for group in group_rows(records)} == since


def test_no_mean_is_taken_across_metrics() -> None:
    text = replace(ROW, id="b", metric="token accuracy", personal=0.1, chance=None, majority=None, local_only=0.5)
    made = summary(ROW, text)
    lines = words(made)
    assert "client train test metric chance base local only shared personal up down" in lines
    for mean in ("accuracy 25.0 50.0 75.0", "token accuracy 25.0 50.0 50.0 10.0"):
        assert f"mean 7 4 {mean} 1.5 kB 2 MB" in lines
    (against,) = (line for line in lines if "against local only" in line)  # of the metric that has it
    assert against.startswith("token accuracy: personal against local only: -40.0 points; 0 clients are better off")
    found = made.to_json()["metrics"]
    assert {name: metric["models"]["personal"]["mean"] for name, metric in found.items()} == {
        "accuracy": 0.75, "token accuracy": 0.1,
    }  # fmt: skip
    assert (found["accuracy"]["chance"], found["token accuracy"]["chance"]) == (0.25, None)


@pytest.mark.parametrize(("n_test", "clear"), [(100, False), (400, True)])
def test_clearly_worse_is_beyond_what_the_items_can_tell(n_test: int, clear: bool) -> None:
    # standard error of the difference: 0.07 with 100 items, 0.035 with 400
    assert clearly_worse(0.5, 0.6, n_test) is clear
    assert not clearly_worse(0.6, 0.5, n_test)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_nothing_is_cut_at_any_width(width: int) -> None:
    rows = [[f"client-{n}", *(f"{1000 * n + column} MB" for column in range(12))] for n in range(3)]
    heads = ["client", *(f"column {column}" for column in range(12))]
    lines = shown(Table(heads, rows, rows), width)
    assert max(map(len, lines)) <= width
    for cell in (*heads, *(cell for row in rows for cell in row)):
        assert any(cell in line for line in lines), cell
    long = replace(ROW, id="a-client-with-a-name-that-is-longer-than-half-of-the-line")
    lines = shown(summary_table(summary(long)), width)
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= width


def test_many_clients_are_counted_and_absent_ones_named() -> None:
    rows = [replace(ROW, id=f"c{k:03d}", group="g") for k in range(100)]
    groups = (GroupRow("g", tuple(row.id for row in rows), 1),)
    lines = words(summary(*rows, groups=groups, evaluation_failures=(Failure("c1", "", ""), Failure("c000", "", ""))))
    assert "and 60 more" in lines
    assert "c099" not in " ".join(lines)
    assert "no row for c1, which did not answer in the end, see summary.json" in lines


def test_a_table_in_markdown_and_html() -> None:
    table = Table(["a", "b"], [["1 & 2", "<b>"]], [["all", "x"]])
    assert table.markdown() == "| a | b |\n| --- | --- |\n| 1 & 2 | <b> |\n| all | x |"
    assert table.html() == (
        "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><th>1 &amp; 2</th><td>&lt;b&gt;</td></tr>"
        "</tbody><tfoot><tr><th>all</th><td>x</td></tr></tfoot></table>"
    )


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_900, "1 MB"), (43_000_000, "43 MB")]
)
def test_sizes_are_decimal(n: int, text: str) -> None:
    assert size(n) == text

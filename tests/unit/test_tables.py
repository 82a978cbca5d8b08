"""What a summary says: means within a metric, groups, adapters; and its table in terminals of any width."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from rich.console import Console

from capfl.report.findings import findings, glossary, in_short, verdicts
from capfl.report.summary import ClientRow, GroupRow, Summary, group_rows, pair
from capfl.report.tables import Table, size, summary_table
from capfl.types import Entry, Failure, RoundRecord, Tally
from scored import client_row

ROW = client_row("a", items=4, base=0.25, shared=0.5, personal=0.75)
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
    said = [*verdicts(what), *findings(what), in_short(what)]
    return [" ".join(line.split()) for line in shown(summary_table(what, said))]


def test_one_client() -> None:
    lines = words(summary())
    assert "client base shared personal train test up down" in lines
    assert "a 25.0 50.0 75.0 7 4 1.5 kB 2 MB" in lines
    assert "mean 25.0 50.0 75.0" in lines
    assert "all 7 4 1.5 kB 2 MB" in lines
    assert "± 95 % 37.7 40.0 37.7" in lines  # 1.96 sqrt(p (1 - p) / 6), p = 2/6 and 3/6
    assert "chance 25.0 %, always the most frequent answer 50.0 %" in lines
    assert "sent for each client and round: 500 B up, 667 kB down" in lines
    assert "whether joining paid is unknown, because no client trained alone; add --references local" in lines
    assert "personal: the client's own adapter, in adapters/clients/CLIENT or at its site" in "\n".join(
        glossary(summary())
    )


def test_groups_are_shown_with_their_members_and_adapters() -> None:
    rows = [replace(ROW, id="b", group="x"), replace(ROW, id="c", group="x", chance=0.5), ROW]
    made = summary(*rows, groups=(GroupRow("x", ("b", "c"), 2),))
    lines = words(made)
    assert "client group base shared personal chance train test up down" in lines
    assert "b x 25.0 50.0 75.0 25.0 7 4 1.5 kB 2 MB" in lines
    assert "a everybody 25.0 50.0 75.0 25.0 7 4 1.5 kB 2 MB" in lines
    assert "x, 2 clients since round 2: b, c" in lines
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


def test_no_mean_is_taken_across_tasks() -> None:
    text = client_row("b", "exact_match", 4, base=0.25, shared=0.5, personal=0.1, local_only=0.5)
    made = summary(ROW, text)
    lines = words(made)
    assert "client metric base local only shared personal chance train test up down" in lines
    for mean in ("accuracy 25.0 50.0 75.0", "exact_match 25.0 50.0 50.0 10.0"):
        assert f"mean {mean}" in lines
        assert f"all {mean.split()[0]} 7 4 1.5 kB 2 MB" in lines
    (against,) = (line for line in lines if "against training alone" in line)  # of the metric that has it
    assert against.startswith("exact_match: 4 test items are too few to tell whether joining paid (-40.0 points ± 52.")
    found = made.to_json()["metrics"]
    assert {name: own["models"]["personal"]["mean"] for name, own in found.items()} == {
        "accuracy": 0.75, "exact_match": 0.1,
    }  # fmt: skip
    assert (found["accuracy"]["chance"], found["exact_match"]["chance"]) == (0.25, None)


NLL = {"base": 40 * math.log(8), "local_only": 40 * math.log(2), "personal": 40 * math.log(4)}  # of 40 tokens
TEXT = replace(
    client_row("a", "perplexity"),
    metrics=("perplexity", "rouge_l"),
    scores={model: {"perplexity": Tally(nll, 40), "rouge_l": Tally(1.5, 3)} for model, nll in NLL.items()},
)


def test_less_perplexity_is_better_and_all_metrics_have_a_table() -> None:
    other = replace(TEXT, id="b", scores={**TEXT.scores, "personal": TEXT.scores["local_only"]})
    made = summary(TEXT, other)
    lines = words(made)
    assert (
        "fedit, 3 rounds: perplexity of a token of the right answers, less is better; on each client's own test items"
        in lines
    )
    assert "a 8.00 2.00 4.00 7 400 1.5 kB 2 MB" in lines
    assert "worst 8.00 2.00 4.00" in lines
    assert words(replace(made, rounds=1))[0].startswith("fedit, 1 round: ")
    assert not any("±" in line for line in lines)  # nothing says how far a perplexity may be off
    assert (
        "joining did not pay (perplexity 1 higher with the personal adapter than after training alone, on average): "
        "0 of 2 better, 1 of 2 worse (a)" in lines
    )
    assert [line for line in lines if line.startswith(("metric", "perplexity 8", "rouge_l,"))] == [
        "metric base local only personal",
        "perplexity 8.00 2.00 3.00",
        "rouge_l, % 50.0 50.0 50.0",
    ]
    said = made.to_json()
    assert said["metrics"]["perplexity"]["models"]["personal"]["worst"] == pytest.approx(4)
    assert [said["metrics"][name]["better"] for name in ("perplexity", "rouge_l")] == ["less", "more"]
    assert said["clients"][0]["personal"] == pytest.approx(4)
    assert said["clients"][0]["scores"]["base"]["rouge_l"] == {"sum": 1.5, "count": 3, "value": 0.5}


@pytest.mark.parametrize(("items", "clear"), [(100, False), (400, True)])
def test_clearly_worse_is_beyond_what_the_items_can_tell(items: int, clear: bool) -> None:
    # standard error of the difference: 0.07 with 100 items, 0.035 with 400
    below = client_row(items=items, personal=0.5, local_only=0.6)
    for metric, own in (
        ("accuracy", below),
        ("rouge_l", client_row("a", "rouge_l", items, personal=0.5, local_only=0.6)),
    ):
        found = pair(own, "personal", metric, own, "local_only")
        assert found is not None
        assert found.is_clearly_worse is clear
    turned = pair(below, "local_only", "accuracy", below, "personal")
    assert turned is not None
    assert not turned.is_clearly_worse


def test_the_mean_of_tokens_is_as_sure_as_that_of_so_many_items() -> None:
    own = replace(client_row(items=100), scores={"personal": {"accuracy": Tally(500, 1000)}})
    assert own.count("personal", "accuracy") == 100
    assert pair(own, "personal", "accuracy", own, "base") is None
    assert pair(TEXT, "personal", "perplexity", TEXT, "local_only").is_clearly_worse is None  # type: ignore[union-attr]


@pytest.mark.parametrize("width", [30, 80, 200])
def test_nothing_is_cut_at_any_width(width: int) -> None:
    rows = [[f"client-{n}", *(f"{1000 * n + column} MB" for column in range(12))] for n in range(3)]
    heads = ["client", *(f"column {column}" for column in range(12))]
    lines = shown(Table(heads, rows, rows), width)
    assert max(map(len, lines)) <= width
    for cell in (*heads, *(cell for row in rows for cell in row)):
        assert any(cell in line for line in lines), cell
    long = replace(ROW, id="a-client-with-a-name-that-is-longer-than-half-of-the-line")
    lines = shown(summary_table(summary(long), ["a sentence"]), width)
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= width


def test_many_clients_are_counted_and_absent_ones_named() -> None:
    rows = [replace(ROW, id=f"c{k:03d}", group="g") for k in range(100)]
    groups = (GroupRow("g", tuple(row.id for row in rows), 1),)
    lines = words(summary(*rows, groups=groups, evaluation_failures=(Failure("c1", "", ""), Failure("c000", "", ""))))
    assert "and 60 more" in lines
    assert "c099" not in " ".join(lines)
    assert "no row for c1: no answer in the final evaluation, see summary.json" in lines


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

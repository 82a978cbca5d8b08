"""Specs, intervals and rows of comparisons, by numbers that can be worked out by hand."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from capfl.compare.folder import Found
from capfl.compare.runs import kept_rows
from capfl.compare.spec import Plan, make_plan
from capfl.compare.statistics import Interval, bootstrap
from capfl.compare.table import against_alone, difference, make_rows, make_table, markdown
from capfl.errors import ConfigError, DataError
from capfl.report.summary import Summary
from capfl.types import Entry, Tally
from scored import client_row

ROOT = Path(__file__).parents[2]
SPEC = """
base = "base.toml"
seeds = [3, 5]
[common]
"train.steps" = 2
train.batch_size = 4
[splits.easy]
about = "two words"
[splits.hard]
data.conflict = 1.0
[variants.local]
method.name = "local"
[variants.fedit]
"method.name" = "fedit"
"train.steps" = 7
codec.density = 0.5
"""


def write(tmp_path: Path, text: str = SPEC) -> Path:
    (tmp_path / "base.toml").write_text("[federation]\nrounds = 4\n[train]\nsteps = 9\n")
    (tmp_path / "spec.toml").write_text(text)
    return tmp_path / "spec.toml"


# -- specs -----------------------------------------------------------------------------------------------


def test_variants_are_crossed_with_splits_and_seeds_and_later_tables_win(tmp_path: Path) -> None:
    plan = make_plan(write(tmp_path), data_dir=Path("there"), model="other")
    assert [cell.name for cell in plan.cells[:3]] == ["easy.local.3", "easy.fedit.3", "hard.local.3"]
    cells = {cell.name: cell.config for cell in plan.cells}
    assert len(cells) == len(plan.cells) == 2 * 2 * 2
    config = cells["hard.fedit.5"]
    assert (config.train.steps, config.train.batch_size, config.federation.rounds) == (7, 4, 4)
    assert (config.codec.density, config.data.conflict, config.data.dir, config.seed) == (0.5, 1.0, "there", 5)
    assert {cell.config.model.path for cell in plan.cells} == {"other"}
    assert cells["easy.local.3"].train.steps == 2
    plan = make_plan(tmp_path / "spec.toml", ["hard"], ["fedit"], [8])
    assert ([cell.name for cell in plan.cells], plan.baseline) == (["hard.fedit.8"], "local")
    (only,) = make_plan(write(tmp_path, 'base = "base.toml"\nseeds = [0]\n[variants.a]\n')).cells
    assert only.name == "base.a.0"  # without splits there is one


@pytest.mark.parametrize("peers", ["[variants.a.method.peers]\n00 = 'a'", "[variants.a]\nmethod.peers = '00=a'"])
def test_a_variant_may_name_groups(tmp_path: Path, peers: str) -> None:
    (only,) = make_plan(write(tmp_path, f'base = "base.toml"\nseeds = [0]\n{peers}\n')).cells
    assert only.config.method.peers == {"00": "a"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (SPEC + "[variants.x]\nmethod.nam = 'fedit'", "easy.x and 1 more: method.nam: no such key; did you mean"),
        (SPEC + "[variants.x]\nseed = 3", "seed cannot be set here"),
        (SPEC + "[variants.'x.y']", "String should match pattern"),
        (SPEC + "[varints.x]", "varints: Extra inputs are not permitted"),
        (SPEC + "[variants.x]\na.b = 1\n[variants.y]\nc.d = 1\n", "easy.y and 1 more: c.d"),  # beside easy.x: a.b
        (SPEC.replace("seeds", "baseline = 'nobody'\nseeds"), "'nobody' is none of"),
        (SPEC.replace("[3, 5]", "[3, 3]"), "names one twice"),
        (SPEC.replace("base.toml", "base.tml"), "base.tml: there is no such config file"),
    ],
)
def test_mistakes_name_the_place(tmp_path: Path, spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        make_plan(write(tmp_path, spec))
    for words in ({"splits": ["esay"]}, {"only": ["fed"]}):
        with pytest.raises(ConfigError, match="choose from"):
            make_plan(write(tmp_path), **words)
    with pytest.raises(ConfigError, match=r"other\.toml: there is no such spec of a comparison"):
        make_plan(tmp_path / "other.toml")


def test_the_specs_that_come_with_it_are_right(tmp_path: Path) -> None:
    for path in sorted((ROOT / "benchmarks").glob("*.toml")):
        assert len(make_plan(path).cells) >= 3
    text = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(encoding="utf-8"), re.S)[0]
    (tmp_path / "spec.toml").write_text(text.replace("../configs", str(ROOT / "configs")))
    plan = make_plan(tmp_path / "spec.toml")
    assert list(plan.spec.variants) == ["local", "fedit", "dense", "mine"]
    assert plan.rows == tmp_path / "own.py"  # which is read when it is needed


def test_a_split_keeps_rows_by_a_field(tmp_path: Path) -> None:
    def keeping(keep: str) -> Path | None:
        text = f'base = "base.toml"\nseeds = [0]\n[splits.few]\n{keep}\ndata.sets = ["clinc150"]\n[variants.a]\n'
        plan = make_plan(write(tmp_path, text), data_dir=tmp_path / "data")
        return kept_rows(plan, plan.cells[0], tmp_path / "out")

    rows = [{"text": str(i), "domain": "abc"[i % 3]} for i in range(6)]
    place = tmp_path / "data" / "clinc150" / "train.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text("\n".join(map(json.dumps, rows)))
    kept = keeping('keep.domain = ["a", "c"]')
    assert kept
    lines = (kept / "clinc150" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["0", "2", "3", "5"]
    assert keeping("") is None
    with pytest.raises(DataError, match="keeps none of its 6 rows"):
        keeping('keep.domain = ["d"]')
    with pytest.raises(DataError, match="'colour'"):
        keeping('keep.colour = ["red"]')


# -- intervals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "mean", "low", "high"),
    [
        ([np.full(3, 0.25), np.full(5, 0.25)], 0.25, 0.25, 0.25),  # equal differences leave no doubt
        ([np.array([0.0, 1.0])], 0.5, 0.0, 1.0),  # two draws of one seed's clients: 0, 1/2, 1 by 1/4, 1/2, 1/4
        ([np.ones(40), -np.ones(40)], 0.0, -1.0, 1.0),  # all doubt is between the seeds
        ([np.ones(1), np.zeros(9)], 0.5, 0.0, 1.0),  # seeds weigh the same however many clients they have
    ],
)
def test_clients_and_seeds_are_drawn(differences: list, mean: float, low: float, high: float) -> None:
    assert bootstrap(differences) == bootstrap(differences) == Interval(mean, low, high)
    with pytest.raises(ValueError, match="at least one seed"):
        bootstrap([*differences, np.array([])])


@pytest.mark.parametrize(
    ("low", "high", "crosses"), [(-3, -1, False), (-1, 1, True), (1, 3, False), (0, 1, True), (1e-17, 1, True)]
)
def test_an_interval_crosses_zero_if_zero_is_in_it(low: float, high: float, crosses: bool) -> None:
    assert Interval((low + high) / 2, low, high).crosses_zero is crosses


@settings(max_examples=25)
@given(st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=5), min_size=1, max_size=3), st.floats(-2, 2))
def test_a_shift_shifts_the_interval(values: list[list[float]], by: float) -> None:
    plain = bootstrap([np.array(own) for own in values], draws=200)
    moved = bootstrap([np.array(own) + by for own in values], draws=200)
    assert (moved.mean, moved.low, moved.high) == pytest.approx((plain.mean + by, plain.low + by, plain.high + by))


# -- rows ------------------------------------------------------------------------------------------------


def run(method: str, *personal: float, local_only: float | None = None, tokens: float | None = None) -> Summary:
    """A run of one client for each score, 400 test items each; and one more client with another metric."""
    alone = {} if local_only is None else {"local_only": local_only}
    rows = [client_row(f"c{i}", base=0.3, personal=score, **alone) for i, score in enumerate(personal)]
    if tokens is not None:
        rows.append(client_row("t", "token_accuracy", base=0.1, personal=tokens))
    ledger = (Entry(1, "c0", "up", 2000, {}), Entry(1, "c1", "down", 1000, {}))
    return Summary(method, 2, tuple(rows), ledger, 0, (), {}, 60.0, 2 * 10**9)


ALONE = {0: run("local", 0.5, 0.5), 1: run("local", 0.5, 0.7)}
BETTER = {0: run("fedit", 0.6, 0.8), 1: run("fedit", 0.8, 0.8)}
METRIC = ("personal", "accuracy")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    variants = "".join(f"[variants.{name}]\n" for name in ("local", "fedit", "good"))
    return make_plan(write(tmp_path, f'base = "base.toml"\nseeds = [0, 1]\n{variants}'))


def test_differences_are_mine_minus_theirs_paired_by_client() -> None:
    found = difference(BETTER, ALONE, *METRIC)
    assert found
    assert found.mean == pytest.approx((0.1 + 0.3 + 0.3 + 0.1) / 4)
    assert (found.low, found.high) == pytest.approx((0.1, 0.3))
    assert difference(BETTER, {2: ALONE[0]}, *METRIC) is None  # no seed in common
    assert difference(BETTER, ALONE, "shared", "accuracy") is None


def test_clients_are_held_to_what_they_have_alone(plan: Plan) -> None:
    mine = {0: run("fedit", 0.49, 0.3), 1: run("fedit", 0.9, 0.9)}
    pairs = [(0.49, 0.5), (0.3, 0.5), (0.9, 0.5), (0.9, 0.7)]
    assert [(one.mine, one.alone) for one in against_alone(mine, ALONE, *METRIC)] == pairs
    assert against_alone(mine, {}, *METRIC) == []
    own = {0: run("fedit", 0.5, 0.5, local_only=0.9)}
    pairs = [(one.mine, one.alone) for one in against_alone(own, ALONE, *METRIC)]
    assert pairs == [(0.5, 0.9)] * 2  # the run's own reference goes before
    local, fedit, good = make_rows({"base": {"good": BETTER, "fedit": mine, "local": ALONE}}, plan)
    assert fedit.worse_off == 0.25  # 0.49 is not clearly below 0.5, 0.3 is
    assert (local.most_lost, fedit.most_lost, good.most_lost) == (None, pytest.approx(0.2), 0.0)


def test_the_rows_and_their_table(plan: Plan) -> None:
    local, fedit = rows = make_rows({"base": {"local": ALONE, "fedit": BETTER}}, plan)
    assert fedit.values["worst"] == (0.6, 0.8)
    assert fedit.values["bytes_up"] == (500.0, 500.0)  # 2000 bytes, two clients, two rounds
    assert fedit.values["bytes_total"] == (1500.0, 1500.0)
    assert local.difference is None
    table = make_table(rows, "local")
    cells = dict(zip(table.heads, table.rows[1], strict=True))
    assert cells["personal, %"] == "75.0 ± 7.1"
    assert (cells["clearly worse off"], cells["most lost"], cells["memory"]) == ("0 %", "0.0", "2 GB")
    assert "shared, %" not in cells  # nobody has it
    assert cells["against local"].startswith("+20.0 (")
    assert "crosses 0 |" not in markdown(rows, plan)
    said = StringIO()
    Console(width=70, file=said).print(Found(rows, ["base.fedit.1"], plan))
    lines = said.getvalue().splitlines()
    assert max(map(len, lines)) <= 70
    assert lines[-1].startswith("Not finished: 1 of ")
    assert "**base**: accuracy; chance 25.0 ± 0.0 %; base model 30.0 ± 0.0 %" in markdown(rows, plan)
    turned = make_rows({"base": {"local": ALONE, "fedit": {0: run("fedit", 0.4, 0.6)}}}, plan)
    assert "| +0.0 (-10.0 to +10.0), crosses 0 |" in markdown(turned, plan)


def test_a_comparison_is_about_the_first_metric_or_those_that_are_named(tmp_path: Path) -> None:
    def of(method: str, *nats: float) -> Summary:
        scores = [{"personal": {"perplexity": Tally(n, 1), "rouge_l": Tally(0.5, 1)}} for n in nats]
        rows = [replace(client_row(f"c{n}"), metrics=("perplexity", "rouge_l"), scores=own, chance=None)
                for n, own in enumerate(scores)]  # fmt: skip
        return replace(run(method, 0.5), rows=tuple(rows))

    both = {"base": {"local": {0: of("local", 0.0, 1.0)}, "fedit": {0: of("fedit", 0.0, 2.0)}}}
    text = 'base = "base.toml"\nseeds = [0]\n{}[variants.local]\n[variants.fedit]\n'
    local, fedit = make_rows(both, make_plan(write(tmp_path, text.format(""))))
    assert (local.metric, fedit.metric) == ("perplexity", "perplexity")
    assert (fedit.values["worst"], fedit.worse_off) == ((pytest.approx(math.exp(2)),), None)
    assert fedit.most_lost == pytest.approx(math.exp(2) - math.e)
    chosen = make_plan(write(tmp_path, text.format('metrics = ["rouge_l", "chrf", "perplexity"]\n')))
    rows = make_rows(both, chosen)
    assert [(row.metric, row.label) for row in rows] == [
        ("rouge_l", "local"), ("rouge_l", "fedit"), ("perplexity", "local"), ("perplexity", "fedit"),
    ]  # fmt: skip
    assert {row.values["personal"] for row in rows[:2]} == {(0.5,)}
    assert "**base**: perplexity (less is better)\n" in markdown([local, fedit], chosen)
    cells = dict(
        zip(make_table([local, fedit], "local").heads, make_table([local, fedit], "local").rows[1], strict=True)
    )
    assert (cells["personal"], cells["most lost"]) == ("4.19", "4.67")
    for wrong, said in (("chrf", "chrf: none of evaluation.metrics = accuracy, "), ("rouge", "did you mean rouge_l")):
        with pytest.raises(ConfigError, match=said):
            make_plan(write(tmp_path, text.format(f'metrics = ["{wrong}"]\n')))


def test_each_metric_has_rows_of_its_own(plan: Plan) -> None:
    runs = {"local": {0: run("local", 0.5, tokens=0.9)}, "fedit": {0: run("fedit", 0.7, tokens=0.8)}}
    rows = make_rows({"base": runs | {"good": {0: run("ca-pfl", 0.6)}}}, plan)
    assert [(row.metric, row.label, row.values["personal"]) for row in rows] == [
        ("accuracy", "local", (0.5,)), ("accuracy", "fedit", (0.7,)), ("accuracy", "good", (0.6,)),
        ("token_accuracy", "local", (0.9,)), ("token_accuracy", "fedit", (0.8,)),
    ]  # fmt: skip
    assert {row.values["bytes_total"] for row in rows} == {(1500.0,)}  # for each client of the run
    assert [row.most_lost for row in rows] == [None, 0.0, 0.0, None, pytest.approx(0.1)]
    assert markdown(rows, plan).count("**base**: ") == 2

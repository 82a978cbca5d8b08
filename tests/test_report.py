"""`capfl report`: one page that is whole, needs nothing, and says what the run's files say."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from capfl.compare.spec import make_plan
from capfl.config import load_config
from capfl.config.load import load_command
from capfl.engines.serial import serial
from capfl.experiment import run
from capfl.page.parts import command as as_command
from capfl.report.ledger import read_ledger
from capfl.report.tables import percent, size
from commands import command, refused
from pages import Element, read_page
from support import tiny_config, tiny_run
from test_compare import write_spec

HOSTILE = '<script>alert("1")</script>'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    tiny_run(out, method__name="ca-pfl", method__rank_floor=1.0, partition__validation=0.2, federation__rounds=3,
             evaluation__references=["local"], codec__values="ternary", data__sites=3)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report-compare")
    plan = make_plan(write_spec(place))
    for cell in plan.cells[:-1]:  # the last one is not finished
        settings = dict(cell.settings) | {"seed": cell.seed, "out": str(place / "out" / cell.name)}
        run(load_config(plan.base, settings), serial)
    (place / "out" / plan.cells[-1].name).mkdir()
    (place / "out" / plan.cells[-1].name / "notes.txt").touch()
    assert command("compare", place / "spec.toml", "--out", place / "out").exit_code == 1
    return place / "out"


def page_of(folder: Path, tmp_path: Path) -> tuple[str, Element]:
    result = command("report", folder, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    return text, read_page(text)


def rows_of(table: Element) -> list[list[str]]:
    return [[cell.words for cell in row.children] for row in table.all("tr")]


@pytest.mark.parametrize("kind", ["finished", "comparison"])
def test_a_page_is_whole_and_needs_nothing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    text, page = page_of(request.getfixturevalue(kind), tmp_path)
    assert text.startswith("<!doctype html>")
    assert page.all("meta", name="viewport")
    assert (
        "default-src 'none'" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    )
    for tag in ("script", "img", "iframe", "object", "video", "use", "foreignobject"):
        assert page.all(tag) == [], tag
    links = [e.attributes[key] for e in _all(page) for key in ("href", "src", "action", "data") if key in e.attributes]
    assert all(link.startswith(("#", "data:,")) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= {e.attributes.get("id") for e in _all(page)}
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    assert len(page.all("h1")) == 1
    for drawing in page.all("svg"):
        assert drawing.attributes["aria-label"]
        assert "nan" not in "".join(str(e.attributes) for e in _all(drawing)).lower()


def test_the_client_table_says_what_the_summary_says(finished: Path, tmp_path: Path) -> None:
    _, page = page_of(finished, tmp_path)
    clients = json.loads((finished / "summary.json").read_text())["clients"]
    heads, *rows = rows_of(page.all("table")[0])
    assert heads == ["client", "train", "test", "base", "local-only", "global", "personal", "rank", "up", "down"]
    for row, own in zip(rows, clients, strict=False):
        assert row[0] == own["id"].replace("_", " ")
        assert row[3:7] == [percent(own[model]) for model in ("base", "local_only", "global", "personal")]
        assert row[8:] == [size(own["bytes_up"]), size(own["bytes_down"])]
    assert [row[0] for row in rows[len(clients) :]] == ["mean", "± 95 %", "worst", "spread"]


def test_the_words_say_what_the_summary_says(finished: Path, tmp_path: Path) -> None:
    _, page = page_of(finished, tmp_path)
    said = json.loads((finished / "summary.json").read_text())
    words = " ".join(p.words for p in page.all("p"))
    for model, name in (("personal", "personal"), ("global", "global"), ("local_only", "local-only"), ("base", "base")):
        assert re.search(
            rf"{percent(said['models'][model]['mean'])} %( of the answers are right)? with the {name}", words
        )
    better = sum(row["personal"] > row["local_only"] for row in said["clients"])
    assert f"{better} clients are better off" in words


def test_ranks_follow_each_client_and_change(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "rounds.jsonl").read_text().splitlines()]
    clients = json.loads((finished / "summary.json").read_text())["clients"]
    modules = len(clients[0]["ranks"])
    for record in records:
        assert record["kappa"].keys() == record["ranks"].keys() == {row["id"] for row in clients}
        for own in record["kappa"].values():
            assert len(own) == modules
            assert sum(own) / modules == pytest.approx(1, abs=1e-3)  # over the client's mean; as many ranks everywhere
    for what in ("kappa", "ranks"):
        first, *_, last = (record[what] for record in records)
        assert first != last
        assert len({str(own) for own in last.values()}) == len(clients)
    assert len({str(row["ranks"]) for row in clients}) == len(clients)


def test_the_figures_draw_every_client_module_and_part(finished: Path, tmp_path: Path) -> None:
    _, page = page_of(finished, tmp_path)
    figures = {figure.all("h4")[0].words: figure for figure in page.all("figure")}
    assert {"Every client", "Accuracy against bytes, %", "Accuracy over rounds, %", "Ranks that clients keep",
            "Ranks over rounds", "Bytes by part"} <= figures.keys()  # fmt: skip
    clients = json.loads((finished / "summary.json").read_text())["clients"]
    bars = figures["Every client"].all("rect")
    assert len(bars) == 4 * len(clients)
    for i, row in enumerate(clients):
        for bar, model in zip(bars[4 * i : 4 * i + 4], ("base", "local_only", "global", "personal"), strict=True):
            assert bar.attributes["class"] == f"m-{model}"
            assert bar.words.endswith(f": {percent(row[model])}")
    cells = figures["Ranks that clients keep"].all("path")
    drawn = {round(float(cell.attributes["style"].removeprefix("--level:")) * 8): cell.attributes["d"].count("z")
             for cell in cells}  # fmt: skip
    ranks = [rank for row in clients for rank in row["ranks"].values()]
    assert drawn == {rank: ranks.count(rank) for rank in set(ranks)}
    ledger = read_ledger(finished)
    rows = {row[0]: row[1:] for row in rows_of(page.all("table")[1])}
    for part, n_bytes in ledger.parts("up").items():
        assert not n_bytes or rows[part][0] == size(n_bytes)
    assert rows["all"][0] == size(sum(ledger.parts("up").values()))


@pytest.mark.parametrize(
    "changes",
    [{}, {"method__name": "ca-pfl", "method__kappa": "ard"}, {"data__sets": ["a b.jsonl", "c.jsonl"]},
     {"evaluation__references": ["local", "centralised"], "evaluation__personal": False, "seed": 7}],
)  # fmt: skip
def test_the_command_runs_the_same_config(changes: dict[str, object]) -> None:
    config = tiny_config("somewhere/run 1", **changes)
    words = shlex.split(as_command(config).replace("\\\n", ""))
    assert words[:2] == ["capfl", "run"]
    assert load_command(None, [], words[2:]) == config


def test_names_are_text_and_never_markup(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(finished, folder)
    summary = json.loads((folder / "summary.json").read_text())
    summary["clients"][0]["id"] = HOSTILE
    (folder / "summary.json").write_text(json.dumps(summary))
    text, page = page_of(folder, tmp_path)
    assert page.all("script") == []
    assert "<script" not in text
    assert HOSTILE in [cell.words for cell in page.all("th")]


def test_a_comparison_has_a_section_for_each_split_and_every_variant(comparison: Path, tmp_path: Path) -> None:
    _, page = page_of(comparison, tmp_path)
    [section] = page.all("section", id="two")
    assert "two desks & <b>" in section.words
    heads, *rows = rows_of(section.all("table")[0])
    assert [row[0] for row in rows] == ["local", "fedit", "short"]
    assert "against local" in heads
    said = json.loads((comparison / "comparison.json").read_text())["rows"]
    for row, own in zip(rows, said, strict=True):
        assert row[heads.index("personal, %")].startswith(percent(sum(own["personal"]) / len(own["personal"])))
    assert [variant.all("b")[0].words for variant in section.all("details")] == ["local", "fedit", "short"]
    bars = section.all("details")[1].all("figure")[0]
    assert [item.words for item in bars.all("li")] == ["base", "local-only", "global", "personal"]  # from method local
    assert "1 runs are not finished" not in page.words
    assert "One run is not finished and not in here: two.short.1." in page.words
    assert "capfl compare" in page.all("pre")[-3].words


def test_what_is_no_finished_run_is_refused(finished: Path, tmp_path: Path) -> None:
    assert "no summary.json and no comparison.json" in refused("report", tmp_path)
    shutil.copytree(finished, tmp_path / "half")
    (tmp_path / "half" / "summary.json").unlink()
    assert "capfl run --resume" in refused("report", tmp_path / "half")
    assert not (tmp_path / "half" / "report.html").exists()


def _all(element: Element) -> list[Element]:
    return [element, *(found for child in element.children for found in _all(child))]

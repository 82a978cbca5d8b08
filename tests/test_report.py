"""A run's result and page: they say what its files say, and every score is that of the adapter that is named."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from capfl.config.load import load_command
from capfl.page.parts import command as as_command
from capfl.report.ledger import read_ledger
from capfl.report.tables import percent, size
from capfl.result import Result
from commands import command, refused
from pages import Element, read_page
from support import tiny_config, tiny_run

HOSTILE = '<script>alert("1")</script>'
ROWS = [
    {"question": f"{['red', 'blue'][n % 2]} {n // 6}", "choices": ["yes", "no"], "site": site,
     "answer": (n + (site == "west")) % 2}
    for n in range(40) for site in ("north", "south", "west")
]  # fmt: skip
"""North and south answer alike, west the other way round."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two groups."""
    place = tmp_path_factory.mktemp("report")
    data = place / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tiny_run(place / "run", method__name="ca-pfl", method__rank_floor=1.0, partition__kind="by:site",
             partition__validation=0.2, partition__test=0.5, federation__rounds=3, train__learning_rate=0.1,
             train__steps=8, evaluation__references=["local"], codec__values="ternary",
             data__sets=[str(data)])  # fmt: skip
    return place / "run"


def page_of(folder: Path, tmp_path: Path) -> tuple[str, Element]:
    path = Result.open(folder).report(tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    return text, read_page(text)


def rows_of(table: Element) -> list[list[str]]:
    return [[cell.words for cell in row.children] for row in table.all("tr")]


def test_groups_are_in_every_file_and_on_the_page(finished: Path, tmp_path: Path) -> None:
    last = json.loads((finished / "rounds.jsonl").read_text().splitlines()[-1])["groups"]
    assert last["north"] == last["south"] != last["west"]
    said = json.loads((finished / "summary.json").read_text())
    assert {row["id"]: row["group"] for row in said["clients"]} == last
    assert {member: group["name"] for group in said["groups"] for member in group["members"]} == last
    assert [group["since"] for group in said["groups"]] == [1, 1]
    _, page = page_of(finished, tmp_path)
    assert f"group {last['north']}, 2 clients since round 1: north, south" in [item.words for item in page.all("li")]


def test_every_score_is_that_of_the_adapter_that_is_named(finished: Path, tmp_path: Path) -> None:
    result = Result.open(finished)
    names = {"global", *(f"groups/{group.name}" for group in result.summary.groups)}
    assert result.adapters.keys() == names | {f"clients/{client}" for client in result.clients}
    partition = json.loads((finished / "partition.json").read_text())
    own, found = tmp_path / "test.jsonl", set()
    for client, row in result.clients.items():
        own.write_text("".join(json.dumps(ROWS[i]) + "\n" for i in partition[client]["test"]))
        assert row.adapters.keys() == {"shared", "personal"}
        for model, place in row.adapters.items():
            assert finished / place in result.adapters.values()
            said = command("eval", finished / place, "--data", own, "--threads", 1)
            assert said.exit_code == 0, said.output
            scored = json.loads(said.stdout)
            assert (scored["items"], scored["accuracy"]) == (row.n_test, getattr(row, model)), (client, model)
            assert scored["base_accuracy"] == row.base
            found.add(scored["accuracy"])
    assert len(found) > 1  # they are not all alike


def test_a_page_is_whole_and_needs_nothing(finished: Path, tmp_path: Path) -> None:
    text, page = page_of(finished, tmp_path)
    assert text.startswith("<!doctype html>")
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    assert "default-src 'none'" in policy
    assert [tag for tag in ("script", "img", "iframe", "object", "video", "use") if page.all(tag)] == []
    every = _all(page)
    links = [e.attributes[key] for e in every for key in ("href", "src", "action", "data") if key in e.attributes]
    assert all(link.startswith(("#", "data:,")) for link in links)
    style = page.all("style")[0].text
    assert [word for word in ("url(", "@import") if word in style] == []
    assert "prefers-color-scheme: dark" in style
    for drawing in page.all("svg"):
        assert drawing.attributes["aria-label"]
        assert "nan" not in "".join(str(e.attributes) for e in _all(drawing)).lower()


def test_the_page_says_what_the_files_say(finished: Path, tmp_path: Path) -> None:
    _, page = page_of(finished, tmp_path)
    said = json.loads((finished / "summary.json").read_text())
    clients, means = said["clients"], said["metrics"]["accuracy"]["models"]
    heads, *rows = rows_of(page.all("table")[0])
    models = ("base", "local_only", "shared", "personal")
    assert ",".join(heads) == "client,train,test,group,rank,base,local only,shared,personal,up,down"
    for row, own in zip(rows, clients, strict=False):
        assert (row[0], row[3]) == (own["id"], own["group"])
        assert row[5:9] == [percent(own[model]) for model in models]
        assert row[9:] == [size(own["bytes_up"]), size(own["bytes_down"])]
    assert [row[0] for row in rows[len(clients) :]] == ["mean", "± 95 %", "worst", "spread"]
    words = " ".join(p.words for p in page.all("p"))
    for model, name in zip(models, ("base model", "local only", "shared", "personal"), strict=True):
        assert f"{percent(means[model]['mean'])} % with the {name}" in words
    better = sum(row["personal"] > row["local_only"] for row in clients)
    assert f"{better} clients are better off" in words
    parts = read_ledger(finished).parts("up")
    heads, *_, total = rows_of(page.all("table")[1])
    assert dict(zip(heads[4:], total[4:], strict=True)) == {part: size(n) for part, n in parts.items() if n}


def test_the_figures_draw_every_client_and_module(finished: Path, tmp_path: Path) -> None:
    _, page = page_of(finished, tmp_path)
    figures = {figure.all("h4")[0].words: figure for figure in page.all("figure")}
    assert {"Every client", "Accuracy against bytes, %", "Ranks that clients keep"} <= figures.keys()
    clients = json.loads((finished / "summary.json").read_text())["clients"]
    models = ("base", "local_only", "shared", "personal")
    drawn = [(bar.attributes["class"], bar.words) for bar in figures["Every client"].all("rect")]
    assert drawn == [(f"m-{m}", f"{row['id']}: {percent(row[m])}") for row in clients for m in models]
    cells = figures["Ranks that clients keep"].all("path")
    counted = {round(float(cell.attributes["style"].removeprefix("--level:")) * 8): cell.attributes["d"].count("z")
               for cell in cells}  # fmt: skip
    ranks = [rank for row in clients for rank in row["ranks"].values()]
    assert counted == {rank: ranks.count(rank) for rank in set(ranks)}
    assert len(counted) > 1


def test_names_are_text_and_never_markup(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "hostile"))
    summary = json.loads((folder / "summary.json").read_text())
    summary["clients"][0]["id"] = HOSTILE
    (folder / "summary.json").write_text(json.dumps(summary))
    text, page = page_of(folder, tmp_path)
    assert "<script" not in text + Result.open(folder)._repr_html_()
    assert HOSTILE in [cell.words for cell in page.all("th")]


@pytest.mark.parametrize("changes", [
    {"method__name": "ca-pfl", "data__sets": ["a b.jsonl", "c.jsonl"]},
    {"evaluation__references": ["local", "centralised"], "evaluation__personal": False, "seed": 7},
])  # fmt: skip
def test_the_command_runs_the_same_config(changes: dict[str, object]) -> None:
    config = tiny_config("somewhere/run 1", **changes)
    words = shlex.split(as_command(config).replace("\\\n", ""))
    assert words[:2] == ["capfl", "run"]
    assert load_command(None, [], words[2:]) == config


def test_what_is_no_finished_run_is_refused(finished: Path, tmp_path: Path) -> None:
    assert command("report", finished, "--out", tmp_path / "page.html").stdout.strip() == str(tmp_path / "page.html")
    assert "no summary.json and no comparison.json" in refused("report", tmp_path)
    half = Path(shutil.copytree(finished, tmp_path / "half"))
    old = json.loads((half / "summary.json").read_text())
    del old["groups"]
    (half / "summary.json").write_text(json.dumps(old))
    assert "was written by another version of capfl ('groups')" in refused("report", half)
    (half / "summary.json").unlink()
    assert "capfl run --resume" in refused("report", half)
    assert not (half / "report.html").exists()


def _all(element: Element) -> list[Element]:
    return [element, *(found for child in element.children for found in _all(child))]

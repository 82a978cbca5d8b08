"""A run's result and page: they say what its files say, and every score is that of the adapter that is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from capfl.files import locked
from capfl.report.live import EVERY, watch, write_page_so_far
from capfl.report.tables import client_table, percent, size
from capfl.result import Result
from commands import command, refused
from support import tiny_run

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("1")</script> $x$'
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


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def page_of(folder: Path) -> ElementTree.Element:
    """The page, which is well-formed XML, too."""
    return ElementTree.fromstring(Result.open(folder).report().read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(finished: Path) -> ElementTree.Element:
    return page_of(finished)


def text_of(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def table_of(page: ElementTree.Element, number: int) -> list[list[str]]:
    return [[text_of(cell) for cell in row] for row in list(page.iter("table"))[number].iter("tr")]


def change(path: Path, with_: Callable[[dict], object]) -> None:
    said = json.loads(path.read_text())
    with_(said)
    path.write_text(json.dumps(said))


def test_every_score_is_that_of_the_adapter_that_is_named(finished: Path, tmp_path: Path) -> None:
    result = Result.open(finished)
    names = {"global", *(f"groups/{group.name}" for group in result.summary.groups)}
    assert result.adapters.keys() == names | {f"clients/{client}" for client in result.clients}
    partition = json.loads((finished / "partition.json").read_text())
    own, found = tmp_path / "test.jsonl", set()
    for client in ("north", "west"):
        row = result.clients[client]
        own.write_text("".join(json.dumps(ROWS[i]) + "\n" for i in partition[client]["test"]))
        assert row.adapters.keys() == {"shared", "personal"}
        for model, place in row.adapters.items():
            assert finished / place in result.adapters.values()
            said = command("eval", finished / place, "--data", own, "--threads", 1)
            assert said.exit_code == 0, said.output
            scored = json.loads(said.stdout)
            assert (scored["items"], scored["generated"]) == (row.n_test, 0)
            assert scored["metrics"] == {"accuracy": row.value(model)}, (client, model)
            assert scored["base"] == {"accuracy": row.base}
            found.add(scored["metrics"]["accuracy"])
    assert len(found) > 1  # they are not all alike


def test_the_page_says_what_the_files_say(finished: Path, page: ElementTree.Element) -> None:
    said = json.loads((finished / "summary.json").read_text())
    last = json.loads((finished / "rounds.jsonl").read_text().splitlines()[-1])["groups"]
    assert {row["id"]: row["group"] for row in said["clients"]} == last
    assert last["north"] == last["south"] != last["west"]
    items = [text_of(item) for item in page.iter("li")]
    assert f"{last['north']}, 2 clients since round 1: north, south" in items
    table = client_table(Result.open(finished).summary)
    assert ",".join(table.heads) == "client,group,base,local only,shared,personal,rank,train,test,up,down"
    assert table_of(page, 0) == [table.heads, *table.rows, *table.foot]
    for row, own in zip(table.rows, said["clients"], strict=True):
        assert row[2:6] == [percent(own[model]) for model in ("base", "local_only", "shared", "personal")]
        assert row[9:] == [size(own["bytes_up"]), size(own["bytes_down"])]


def test_every_byte_is_of_a_client_and_of_a_part(finished: Path, page: ElementTree.Element) -> None:
    summary = Result.open(finished).summary
    for n, direction in enumerate(("up", "down"), start=1):
        for client in summary.rows:  # as in the table that the run printed
            assert sum(summary.parts(direction, client.id).values()) == getattr(client, f"bytes_{direction}")
        heads, *rows, total = table_of(page, n)
        assert [row[0] for row in rows] == ["north", "south", "west"]
        assert total[1:3] == ["15", size(summary.total_bytes(direction))]  # introductions, three rounds, the evaluation
        parts = {part: size(n_bytes) for part, n_bytes in summary.parts(direction).items() if n_bytes}
        assert dict(zip(heads[3:], total[3:], strict=True)) == parts
        assert "records" in parts


def test_a_page_needs_nothing_and_draws_every_client(page: ElementTree.Element) -> None:
    (policy,) = (meta.attrib["content"] for meta in page.iter("meta") if meta.get("http-equiv"))
    assert "default-src 'none'" in policy
    for element in page.iter():
        assert element.tag.removeprefix(SVG) not in ("script", "img", "image", "iframe", "object")
        for name, value in element.attrib.items():
            assert not name.endswith(("href", "src")) or value.startswith(("#", "data:,"))
            assert "nan" not in value.lower()
    style = text_of(next(page.iter("style")))
    assert "color-scheme: light dark" in style
    assert not {"url(", "@import"} & set(style.split())
    figures = {text_of(figure[0]): figure for figure in page.iter("figure")}
    assert {
        "Validation of the shared adapters against bytes, accuracy, %",
        "Mean rank of a client's modules",
    } <= figures.keys()
    words = {text_of(text) for text in figures["Every client, accuracy, %"].iter(f"{SVG}text")}
    assert {"north", "south", "west", "base", "local only", "shared", "personal"} <= words
    assert "currentColor" in ElementTree.tostring(figures["Training loss, nats a token"], encoding="unicode")


def test_names_are_text_and_never_markup(copied: Path) -> None:
    change(copied / "summary.json", lambda said: said["clients"][0].update(id=HOSTILE))
    page = page_of(copied)  # which parses
    assert [element.tag for element in page.iter() if "script" in str(element.tag)] == []
    assert HOSTILE in [text_of(cell) for cell in page.iter("th")]
    assert HOSTILE in [text_of(text) for text in page.iter(f"{SVG}text")]
    assert "<script" not in Result.open(copied)._repr_html_()


def test_what_is_no_finished_run_is_refused(finished: Path, copied: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "page.html", copied / "summary.json"
    assert command("report", finished, "--out", out).stdout.strip() == str(out)
    for place in (tmp_path, tmp_path / "gone"):
        for name in ("report", "bytes"):
            assert f"{place} has no config.toml: not a run folder" in refused(name, place)
    change(file, lambda said: said["bytes"].update(up=1))
    assert "says 1 bytes up, the messages in rounds.jsonl sum to" in refused("bytes", copied)
    change(file, lambda said: said["clients"][0].pop("scores"))
    assert "another version of capfl: rows.0.scores: Field required" in refused("report", copied)
    change(file, lambda said: said.pop("clients"))
    assert "another version of capfl: 'clients' is missing" in refused("report", copied)
    file.unlink()
    assert f"is not finished; continue with: capfl run --resume {copied}" in refused("report", copied)


# -- while a run goes on -------------------------------------------------------------------------------------------


def unfinished(folder: Path, rounds: int) -> bytes:
    """Make the finished run in a folder one that has so many rounds. Returns its summary.json, which is gone."""
    (folder / "report.html").unlink(missing_ok=True)
    lines = (folder / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_bytes(b"".join(lines[:rounds]) + b'{"half a li')
    summary = (folder / "summary.json").read_bytes()
    (folder / "summary.json").unlink()
    return summary


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_page_of_the_rounds_so_far(copied: Path, tmp_path: Path, rounds: int) -> None:
    unfinished(copied, rounds)
    out = tmp_path / "so far.html"
    with locked(copied):
        write_page_so_far(copied, out)
    page = ElementTree.fromstring(out.read_text(encoding="utf-8"))
    text = text_of(page)
    assert f"ca-pfl, round {rounds} of 3 so far" in text
    assert "the run is active, and this page reloads itself" in text
    assert "local: round 3 of 3" in text
    again = [meta.get("content") for meta in page.iter("meta") if meta.get("http-equiv") == "refresh"]
    assert again == [str(round(EVERY))]
    table = table_of(page, 0)
    records = [json.loads(line) for line in (copied / "rounds.jsonl").read_text().splitlines()[:rounds]]
    shown = {row[0]: row[3:5] for row in table if row[0] != "client"}
    assert shown == (
        {client: [f"{record['losses'][client]:.3f}" for record in records] for client in records[0]["losses"]}
        if records else {}
    )  # fmt: skip
    assert len(list(page.iter(f"{SVG}svg"))) == (3 if rounds else 0)
    write_page_so_far(copied, out)
    assert f"no process works on this run; continue with: capfl run --resume {copied}" in out.read_text(
        encoding="utf-8"
    )


def test_the_page_is_written_again_until_the_run_is_finished(copied: Path) -> None:
    whole = (copied / "rounds.jsonl").read_bytes()
    summary = unfinished(copied, 1)
    out, said, titles = copied / "report.html", list[str](), list[str]()

    def pause(seconds: float) -> None:
        titles.append(text_of(next(ElementTree.fromstring(out.read_text(encoding="utf-8")).iter("h1"))))
        if len(titles) == 1:
            out.write_text("<html><h1>not written again</h1></html>", encoding="utf-8")
        elif len(titles) == 2:
            (copied / "rounds.jsonl").write_bytes(whole)
        else:
            (copied / "summary.json").write_bytes(summary)

    assert watch(copied, out, said.append, pause) == out
    assert titles == ["ca-pfl, round 1 of 3 so far", "not written again", "ca-pfl, round 3 of 3 so far"]
    assert len(said) == 1
    assert 'http-equiv="refresh"' not in out.read_text(encoding="utf-8")
    assert "no config.toml: not a run folder" in refused("report", copied.parent, "--watch")

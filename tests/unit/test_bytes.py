"""The ledger of a run, read back from its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from capfl.errors import CheckpointError
from capfl.report.ledger import ledger_tables, read_ledger
from capfl.report.summary import Summary, total_parts
from capfl.types import Entry
from support import tiny_run

SPARSE: dict[str, object] = {
    "codec__values": "ternary", "codec__density": 0.2, "codec__mask": "top",
    "federation__fraction": 0.5, "data__sites": 4, "federation__rounds": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, tiny_run(out, **SPARSE)


@pytest.fixture
def folder(finished: tuple[Path, Summary], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def test_the_folder_has_every_message_of_the_run(finished: tuple[Path, Summary]) -> None:
    path, summary = finished
    ledger = read_ledger(path)
    assert (*ledger.entries, *ledger.delivery) == summary.ledger
    assert (ledger.rounds, ledger.finished, len(ledger.delivery)) == (6, True, 8)
    said = ledger.to_json()
    for direction in ("up", "down"):
        assert said[f"bytes_{direction}"] == summary.total_bytes(direction)
        assert said[f"parts_{direction}"] == summary.parts(direction)
        assert sum(said[f"parts_{direction}"].values()) == said[f"bytes_{direction}"]
        assert sum(row[f"bytes_{direction}"] for row in said["clients"]) == said[f"bytes_{direction}"]
    rows = {row["client"]: row for row in said["clients"]}
    for row in summary.rows:  # as in the table that the run printed
        assert (rows[row.id]["bytes_up"], rows[row.id]["bytes_down"]) == (row.bytes_up, row.bytes_down)
        assert sum(rows[row.id]["parts_down"].values()) == row.bytes_down
    assert said["parts_down"]["catch-up"] > 0
    last = {d: sum(e.bytes for e in summary.ledger if e.round == 7 and e.direction == d) for d in ("up", "down")}
    assert (said["final_replies"], said["final_delivery"]) == (last["up"], last["down"])
    assert (said["messages_up"], said["messages_down"]) == (16, 16)
    saved = json.loads((path / "summary.json").read_text())["bytes"]
    assert (saved["parts_up"], saved["parts_down"]) == (said["parts_up"], said["parts_down"])
    for client in ledger.clients:  # a mean is of the rounds that a client took part in
        up = [e.bytes for e in summary.ledger if e.client == client and e.direction == "up" and e.round <= 6]
        assert ledger.per_round("up", client) == pytest.approx(sum(up) / max(1, len(up)))
    assert ledger.per_round("up") == sum(e.bytes for e in summary.ledger if e.direction == "up" and e.round <= 6) / 6


def test_parts_come_in_order_and_sum() -> None:
    entries = [
        Entry(1, "a", "up", 7, {"unreadable": 7}),
        Entry(1, "a", "up", 6, {"values": 3, "header": 2, "positions": 1}),
    ]
    assert list(total_parts(entries).items()) == [("header", 2), ("positions", 1), ("values", 3), ("unreadable", 7)]


def shown(path: Path) -> list[list[str]]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(ledger_tables(read_ledger(path)))
    return [line.split() for line in capture.get().splitlines()]


def test_the_tables_fit_a_terminal(folder: Path) -> None:
    lines = shown(folder)
    columns = ["count", "bytes", "a", "round", "header", "positions", "scales", "values"]
    assert ["left", "the", "site", *columns, "scores"] in lines
    assert ["came", "back", *columns, "catch-up"] in lines
    assert [line[:2] for line in lines if line[:1] == ["all"]] == [["all", "16"], ["all", "16"]]


def test_an_unfinished_run_says_so(folder: Path) -> None:
    (folder / "summary.json").unlink()
    ledger = read_ledger(folder)
    assert (ledger.finished, ledger.delivery) == (False, ())
    assert ledger.to_json()["messages_down"] == 12
    assert "not finished: without the final evaluation" in " ".join(word for line in shown(folder) for word in line)


def test_a_folder_that_is_no_run_or_has_no_rounds(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} has no config.toml: not a run folder"):
        read_ledger(tmp_path)
    (folder / "rounds.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=f"{folder} has no rounds yet; go on with: capfl run --resume"):
        read_ledger(folder)


def test_files_that_do_not_agree(folder: Path) -> None:
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(CheckpointError, match=r"summary.json says \d+ bytes up .* the messages sum to \d+"):
        read_ledger(folder)


def test_files_of_another_version(folder: Path) -> None:
    saved = json.loads((folder / "summary.json").read_text())
    del saved["bytes"]["delivery"]
    (folder / "summary.json").write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="does not list the final delivery; write it anew with: capfl run"):
        read_ledger(folder)
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for row in rows:
        for entry in row["ledger"]:
            del entry["parts"]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CheckpointError, match=r"rounds\.jsonl, line 1, is no record of a round"):
        read_ledger(folder)

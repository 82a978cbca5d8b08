"""Lines of JSON on what happens at a server or a node, and logs that do not grow for ever."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.engines.flower import events, processes
from capfl.engines.flower.events import Events
from capfl.engines.flower.processes import Process


def test_a_line_is_an_object_with_its_time_and_its_file_is_private(tmp_path: Path) -> None:
    note = Events(tmp_path)
    note("started", process="node north", pid=7)
    Events(tmp_path)("answered", kind="train", seconds=0.5)  # another process of the same node
    lines = [json.loads(line) for line in note.path.read_text().splitlines()]
    times = [datetime.datetime.fromisoformat(line.pop("time")) for line in lines]
    assert all(time.utcoffset() == datetime.timedelta(0) for time in times)
    assert lines == [
        {"event": "started", "process": "node north", "pid": 7}, {"event": "answered", "kind": "train", "seconds": 0.5}
    ]  # fmt: skip
    assert note.path.stat().st_mode & 0o777 == 0o600


def test_a_long_file_is_put_aside_and_a_disk_that_takes_nothing_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LONGEST", 100)
    note = Events(tmp_path)
    for n in range(9):
        note("ended", status=n)
    kept = [json.loads(line)["status"] for name in ("events.jsonl.1", "events.jsonl")
            for line in (tmp_path / name).read_text().splitlines()]  # fmt: skip
    assert kept == list(range(kept[0], 9))
    assert 2 <= len(kept) <= 6
    Events(tmp_path / "gone")("ended")


def test_a_log_that_has_become_long_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its process runs, which goes on appending."""
    monkeypatch.setattr(processes, "LONGEST", 10)
    log = tmp_path / "node.log"
    process = Process("node", [], {}, log)
    with open(log, "ab", buffering=0) as output:
        output.write(b"a long line\n")
        process.shorten()
        assert log.read_bytes() == b"a long line\n"  # nobody is running
        process.running = object()  # type: ignore[assignment]
        process.shorten()
        output.write(b"next\n")
        process.shorten()
    assert log.read_bytes() == b"next\n"
    assert (tmp_path / "node.log.1").read_bytes() == b"a long line\n"

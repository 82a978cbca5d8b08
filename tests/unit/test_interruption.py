"""Signals: what is being written ends first, and whoever has started a run is told how to go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import capfl.experiment
from capfl.checkpoint import RunFolder
from capfl.interruption import Interrupted, interruptible, unbroken
from capfl.types import RoundRecord, ServerState
from commands import TINY_FLAGS, command

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@BOTH
def test_a_signal_waits_for_the_end_of_a_write_and_a_second_one_does_not(number: int) -> None:
    before, done = signal.getsignal(number), list[str]()

    def write(signals: int) -> None:
        with interruptible(), unbroken():
            with unbroken():
                for _ in range(signals):
                    send(number)
                done.append("inner")
            done.append("outer")

    def nothing() -> None:
        with interruptible():
            send(number)
            done.append("not done")

    write(0)
    with pytest.raises(Interrupted) as caught:
        write(1)
    assert (caught.value.number, done) == (number, ["inner", "outer"] * 2)
    for stopped in (lambda: write(2), nothing):
        with pytest.raises(Interrupted):
            stopped()
    write(0)  # nothing is left of the signals
    assert done == ["inner", "outer"] * 3
    assert signal.getsignal(number) is before


def test_an_error_in_a_write_counts_more_than_a_signal() -> None:
    def write() -> None:
        with interruptible(), unbroken():
            send(signal.SIGTERM)
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write()


def test_a_round_is_committed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the signal comes between its record and the state, where a kill would lose the round."""
    folder = RunFolder(tmp_path / "run")
    append = folder.history.append

    def interrupted(line: str) -> None:
        append(line)
        send(signal.SIGTERM)

    monkeypatch.setattr(type(folder.history), "append", lambda self, line: interrupted(line))
    record = RoundRecord(1, ("a",), {"a": 0.1}, {"a": 3}, (), (), 0.25)
    with pytest.raises(Interrupted), interruptible():
        folder.commit(ServerState(1, {}), record)
    assert (tmp_path / "run" / "state" / "server").is_file()


@BOTH
def test_a_run_that_is_interrupted_says_after_which_round_and_how_it_goes_on(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, out = ["run", *TINY_FLAGS, "--out", tmp_path / "run"], tmp_path / "run"
    code = 128 + number

    def run(config: object, engine: object, callback: Any, **more: object) -> None:
        if began:
            callback.on_begin(out, config)
            callback.on_start("fedit", 9, 0, 2)
            callback.on_start("local", 9, 4, 2)
        send(number)

    monkeypatch.setattr(capfl.experiment, "run", run)
    began = False
    result = command(*words)
    assert (result.exit_code, result.stderr) == (code, "interrupted before anything was written; start it again\n")
    began = True
    result = command(*words)
    assert result.exit_code == code
    assert result.stderr == f"interrupted (local, after round 4); continue with: capfl run --resume {out}\n"

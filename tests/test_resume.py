"""A run that is killed goes on to the same bits, wherever it was killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capfl.checkpoint import RunFolder
from capfl.config import to_toml
from capfl.engines.serial import serial
from capfl.errors import CheckpointError
from capfl.experiment import resume
from support import tiny_config, tiny_run

SETTINGS = {"federation__rounds": 3, "federation__fraction": 0.5, "evaluation__references": ["local"]}


def everything(out: Path) -> dict[str, object]:
    """Bits of all states and adapters, and all records but their times."""
    found: dict[str, object] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if path.name == "rounds.jsonl":
            records = RunFolder(path.parent).rounds()
            found[name] = [(r.round, r.clients, r.losses, r.ledger, r.validation_loss) for r in records]
        elif path.name == "summary.json":
            saved = RunFolder(path.parent).read_json(path.name)
            found[name] = {key: saved[key] for key in ("models", "clients", "bytes")}
        elif path.suffix != ".json":
            found[name] = path.read_bytes().replace(str(out).encode(), b"")
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("whole") / "run"
    tiny_run(out, **SETTINGS)
    return everything(out)


class Killed(BaseException):
    """Not an Exception: nothing catches it."""


def killer(n: int) -> Callable[[str, str], None]:
    """An os.replace that ends the process at its n-th call: before it if n is even, after it if n is odd."""
    real, calls = os.replace, 0

    def replace(source: str, target: str) -> None:
        nonlocal calls
        calls += 1
        if calls <= n or n % 2:
            real(source, target)
        if calls > n:
            raise Killed

    return replace


def test_killed_at_any_write(runs: Path, uninterrupted: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    n, finished = 0, False
    while not finished:
        out = runs / str(n)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killer(n))
            try:
                tiny_run(out, **SETTINGS)
                finished = True
            except Killed:
                pass
        if not finished and (out / "config.toml").is_file():
            resume(out, serial)
            assert everything(out) == uninterrupted, f"killed at write {n}"
        n += 3  # all kinds of places, odd and even
    assert n > 20


@pytest.mark.parametrize("method", ["fedex-lora", "flora", "hetlora", "flasc"])
def test_a_base_that_was_patched_and_moments_and_ranks_are_there_again(
    runs: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"federation__rounds": 3, "method__name": method, "evaluation__every": 1}
    tiny_run(runs / "whole", **settings)
    whole = everything(runs / "whole")
    for n in (4, 7, 9, 12):
        out = runs / str(n)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killer(n))
            with pytest.raises(Killed):
                tiny_run(out, **settings)
        assert (out / "config.toml").is_file()
        resume(out, serial)
        assert everything(out) == whole, f"killed at write {n}"


def test_killed_with_signal_9_at_random_moments(runs: Path, uninterrupted: dict[str, object]) -> None:
    runs.mkdir()
    config = runs / "config.toml"
    out = runs / "run"
    config.write_text(to_toml(tiny_config(out, **SETTINGS)))
    command = [sys.executable, "-m", "capfl.cli", "run"]
    moments = random.Random(0)
    arguments, kills = [str(config)], 0
    for _ in range(8):
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        began = time.monotonic()
        while not (out / "config.toml").exists() and process.poll() is None and time.monotonic() - began < 120:
            time.sleep(0.01)  # let it begin
        if kills < 3:
            time.sleep(moments.uniform(0.0, 1.2) + (2.0 if "--resume" in arguments else 0.0))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        arguments = ["--resume", str(out)]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
        kills += 1
    assert process.returncode == 0
    assert kills
    assert everything(out) == uninterrupted


def test_a_finished_run_resumes_to_the_same_summary(runs: Path) -> None:
    first = tiny_run(runs, **SETTINGS)
    again, _ = resume(runs, serial)
    assert [row.to_json() for row in again.rows] == [row.to_json() for row in first.rows]


def test_changed_data_are_refused(runs: Path) -> None:
    tiny_run(runs)
    changed = (runs / "config.toml").read_text().replace("items = 30", "items = 31")
    (runs / "config.toml").write_text(changed)
    with pytest.raises(CheckpointError, match="data or their partition have changed"):
        resume(runs, serial)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.toml"):
        resume(tmp_path, serial)

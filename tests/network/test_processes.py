"""Processes that are kept running, and of which nothing is left when they are stopped."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest

from capfl.engines.flower import processes
from capfl.engines.flower.processes import Process, environment, run_until_stopped, script, supervise
from capfl.errors import ConfigError

WAIT = "import time; time.sleep(600)"
STARTS = f"child = subprocess.Popen([sys.executable, '-S', '-c', '{WAIT}']); print('child', child.pid);"


def python(tmp_path: Path, name: str, code: str, hints: dict[str, str] | None = None) -> Process:
    command = [sys.executable, "-S", "-u", "-c", f"import signal, subprocess, sys, time; {code}"]
    return Process(name, command, dict(os.environ), tmp_path / f"{name}.log", hints or {})


def step_until(steps: Iterable[object], what: Callable[[], object]) -> None:
    by, steps = time.monotonic() + 60, iter(steps)
    while not what():
        next(steps)
        assert time.monotonic() < by
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pid_of(process: Process) -> int:
    assert process.running is not None
    return process.running.pid


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "AGAIN", 0.1)
    monkeypatch.setattr(processes, "GRACE", 0.5)


def test_one_that_ends_starts_again_leaves_nothing_behind_and_what_it_said_is_said(tmp_path: Path) -> None:
    """With its last words, in which control characters are harmless."""
    said: list[str] = []
    brief, log = python(tmp_path, "brief", STARTS + "print('no \\x1b[2J luck'); sys.exit(3)"), tmp_path / "brief.log"
    with closing(supervise([brief], said.append)) as steps:
        step_until(steps, lambda: said)
        orphan = int(log.read_text().split()[1])
        step_until(steps, lambda: not alive(orphan))
        step_until(steps, lambda: log.read_text().count("luck") >= 2)
    assert said[0].startswith(f"brief ended with 3, starts again every 0 s; see {log}\n")
    assert "no \\x1b[2J luck" in said[0]


def test_a_hint_stands_for_the_last_words(tmp_path: Path) -> None:
    said: list[str] = []
    code = "print('[code: 2004] Failed'); print('INFO: bye\\n' * 20); sys.exit(1)"
    refused = python(tmp_path, "refused", code, {"code: 2004": "it is not let in"})
    with closing(supervise([refused], said.append)) as steps:
        step_until(steps, lambda: (tmp_path / "refused.log").exists() and said and refused.running)
        step_until(steps, lambda: (tmp_path / "refused.log").read_text().count("Failed") >= 3)
    (text,) = said  # not every time
    assert "it is not let in" in text
    assert "Failed" not in text


def test_nothing_is_left_when_they_are_stopped(tmp_path: Path) -> None:
    """Neither one that does not want to end, nor what it has started."""
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" + STARTS + "time.sleep(600)"
    stubborn, log = python(tmp_path, "stubborn", code), tmp_path / "stubborn.log"
    said: list[str] = []
    with closing(supervise([stubborn], said.append)) as steps:
        step_until(steps, lambda: log.exists() and log.read_text().endswith("\n"))  # -u writes word by word
        pids = [pid_of(stubborn), int(log.read_text().split()[1])]
        assert all(map(alive, pids))
    assert not alive(pids[0])
    step_until(itertools.repeat(None), lambda: not alive(pids[1]))  # killed, but not ours to wait for
    assert said == []


def test_one_takes_another_with_it_and_both_start_again(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    node = python(tmp_path, "node", f"print('here'); {WAIT}")
    worker = python(tmp_path, "worker", WAIT)
    worker.takes = [node]
    with closing(supervise([node, worker], lambda text: None)) as steps:
        step_until(steps, lambda: log.exists() and log.read_text() == "here\n" and worker.running)
        before = pid_of(node)
        os.kill(pid_of(worker), signal.SIGKILL)
        step_until(steps, lambda: log.read_text() == "here\nhere\n")
        assert not alive(before)
        before = pid_of(worker)
        os.kill(pid_of(node), signal.SIGKILL)
        step_until(steps, lambda: log.read_text() == "here\nhere\nhere\n")
        assert pid_of(worker) == before  # the other way round it does not


def test_a_signal_ends_them_and_the_old_handlers_come_back(tmp_path: Path) -> None:
    before, waiting, pids = signal.getsignal(signal.SIGTERM), python(tmp_path, "waiting", WAIT), []

    def step() -> None:
        pids.append(pid_of(waiting))
        os.kill(os.getpid(), signal.SIGTERM)

    run_until_stopped([waiting], print, step)
    assert len(pids) == 1
    assert not alive(pids[0])
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_goes_out_and_nothing_is_installed(tmp_path: Path) -> None:
    found = environment(tmp_path)
    assert found["FLWR_HOME"] == str(tmp_path)
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["FLWR_DISABLE_UPDATE_CHECK"] == found["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_a_command_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no-such-command is missing; pip install capfl\[flower\]"):
        script("no-such-command")

"""Processes that are kept running, and of which nothing is left when they are stopped."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from capfl.engines.flower import processes
from capfl.engines.flower.processes import Process, environment, script, supervise, told_to_stop
from capfl.errors import ConfigError


def python(tmp_path: Path, name: str, code: str, hints: dict[str, str] | None = None) -> Process:
    return Process(name, [sys.executable, "-u", "-c", code], dict(os.environ), tmp_path / f"{name}.log", hints or {})


def step_until(steps: object, what: Callable[[], object]) -> None:
    by = time.monotonic() + 60
    while not what():
        next(steps)  # type: ignore[call-overload]
        assert time.monotonic() < by
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "AGAIN", 0.1)


def test_one_that_ends_starts_again_and_that_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    log = tmp_path / "brief.log"
    brief = python(tmp_path, "brief", "print('no luck'); raise SystemExit(3)")
    with closing(supervise([brief], said.append)) as steps:
        step_until(steps, lambda: log.exists() and log.read_text().count("no luck") >= 3)
    (text,) = said
    assert text.startswith("brief ended with 3")
    assert "no luck" in text
    assert str(log) in text


def test_a_hint_stands_for_the_last_words(tmp_path: Path) -> None:
    said: list[str] = []
    refused = python(
        tmp_path,
        "refused",
        "print('[code: 2004] Failed'); print('INFO: bye\\n' * 20); exit(1)",
        {"code: 2004": "it is not let in"},
    )
    with closing(supervise([refused], said.append)) as steps:
        step_until(steps, lambda: said)
    assert "it is not let in" in said[0]
    assert "Failed" not in said[0]


def test_nothing_is_left_when_they_are_stopped(tmp_path: Path) -> None:
    """Neither one that does not want to end, nor what it has started."""
    code = (
        "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid); time.sleep(600)"
    )
    stubborn, log = python(tmp_path, "stubborn", code), tmp_path / "stubborn.log"
    said: list[str] = []
    processes.GRACE, before = 0.5, processes.GRACE
    try:
        with closing(supervise([stubborn], said.append)) as steps:
            step_until(steps, lambda: log.exists() and log.read_text().endswith("\n"))  # -u writes word by word
            pids = [stubborn.running.pid, int(log.read_text().split()[1])]
            assert all(map(alive, pids))
    finally:
        processes.GRACE = before
    assert not alive(pids[0])
    step_until(itertools.repeat(None), lambda: not alive(pids[1]))  # killed, but not ours to wait for
    assert said == []


def test_one_that_ends_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid)"
    )
    parent, log = python(tmp_path, "parent", code), tmp_path / "parent.log"
    said: list[str] = []
    with closing(supervise([parent], said.append)) as steps:
        step_until(steps, lambda: said)
        orphan = int(log.read_text().split()[1])
        step_until(steps, lambda: not alive(orphan))


def test_a_signal_is_noticed_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with told_to_stop() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
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


def test_one_takes_another_with_it_and_both_start_again(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    node = python(tmp_path, "node", "import time; print('here'); time.sleep(600)")
    worker = python(tmp_path, "worker", "import time; time.sleep(600)")
    worker.takes = [node]
    with closing(supervise([node, worker], lambda text: None)) as steps:
        step_until(steps, lambda: log.exists() and log.read_text() == "here\n" and worker.running)
        before = node.running.pid
        os.kill(worker.running.pid, signal.SIGKILL)
        step_until(steps, lambda: log.read_text() == "here\nhere\n")
        assert not alive(before)
        before = worker.running.pid
        os.kill(node.running.pid, signal.SIGKILL)
        step_until(steps, lambda: log.read_text() == "here\nhere\nhere\n")
        assert worker.running.pid == before  # the other way round it does not

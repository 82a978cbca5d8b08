"""Processes that are kept running, and of which nothing is left when they are stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from capfl.engines.flower import processes
from capfl.engines.flower.node import HINTS
from capfl.engines.flower.processes import Process, environment, meanings, new_secret, supervise
from capfl.errors import CheckpointError

WAIT = "import time; time.sleep(600)"
STARTS = f"child = subprocess.Popen([sys.executable, '-S', '-c', '{WAIT}']); print('child', child.pid);"


def python(tmp_path: Path, name: str, code: str, hints: dict[str, str] | None = None) -> Process:
    command = [sys.executable, "-S", "-u", "-c", f"import signal, subprocess, sys, time; {code}"]
    return Process(name, command, dict(os.environ), tmp_path / f"{name}.log", hints or {})


def supervised(running: list[Process], *steps: Callable[[], object]) -> list[str]:
    """What is said of processes while one step after the other becomes true; then SIGTERM ends them."""
    left, said, by = list(steps), list[str](), time.monotonic() + 60

    def step() -> None:
        assert time.monotonic() < by
        if left and left[0]():
            left.pop(0)
        if not left:
            os.kill(os.getpid(), signal.SIGTERM)

    supervise(running, said.append, step)
    return said


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def pid_of(process: Process) -> int:
    assert process.running is not None
    return process.running.pid


def kill(process: Process) -> bool:
    os.kill(pid_of(process), signal.SIGKILL)
    return True


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "AGAIN", 0.1)
    monkeypatch.setattr(processes, "GRACE", 0.5)
    monkeypatch.setattr(processes, "PAUSE", 0.02)


def test_one_that_ends_starts_again_leaves_nothing_behind_and_what_it_said_is_said(tmp_path: Path) -> None:
    """With its last words, in which control characters are harmless; or with what they mean, once."""
    brief = python(tmp_path, "brief", STARTS + "print('no \\x1b[2J luck'); sys.exit(3)")
    refused = python(tmp_path, "refused", "print('[code: 2004] Failed'); sys.exit(1)", {"code: 2004": "not let in"})

    def times(process: Process, word: str) -> int:
        return process.log.read_text().count(word) if process.log.exists() else 0

    said = supervised([brief], lambda: times(brief, "luck") >= 2)
    assert said[0].startswith(f"brief ended with 3, starts again every 0 s; see {brief.log}\n")
    assert "no \\x1b[2J luck" in said[0]
    assert not alive(int(brief.log.read_text().split()[1]))
    (text,) = supervised([refused], lambda: times(refused, "Failed") >= 3)
    assert "not let in" in text
    assert "Failed" not in text


def test_of_several_meanings_of_a_line_the_first_is_said() -> None:
    """As of a certificate that has expired: it is not one for another address."""
    errors = {
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired": "has expired",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch": "not for this address;",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate": "or not that of",
        "[code: 2004] Failed to activate SuperNode.": "its key is not registered",
        "[code: 2001] SuperNode authentication is enabled.": "this one has none",
        "Client error '401 Unauthorized' for url 'https://x:1/'": "or its clock is more than five seconds ahead",
    }
    for line, meaning in errors.items():
        (said,) = meanings([line, line], HINTS)
        assert meaning in said
    assert meanings(["something else"], HINTS) == []


def test_lines_that_are_to_be_said_at_once_are_said_once(tmp_path: Path) -> None:
    teller = python(
        tmp_path, "teller", "print('capfl: a\\x1b[2J'); print('failed\\nfailed'); print('capfl: b');" + WAIT
    )
    teller.warns = {"failed": "it is tried again"}
    teller.tells = True
    (tmp_path / "teller.log").write_text("capfl: of an earlier start\n")
    looks: list[str] = []
    said = supervised([teller], lambda: "b\n" in teller.log.read_text(), lambda: looks.append("x") or len(looks) > 5)
    assert sorted(said) == ["a\\x1b[2J", "b", "teller: it is tried again"]
    teller.quiet["it is tried again"] -= 3601
    (tmp_path / "teller.log").write_text("")
    said = supervised([teller], lambda: "b\n" in teller.log.read_text(), lambda: looks.append("x") or len(looks) > 15)
    assert "teller: it is tried again" in said


def test_nothing_is_left_when_they_are_stopped(tmp_path: Path) -> None:
    """Neither one that does not want to end, nor what it has started; and the old handlers come back."""
    before = signal.getsignal(signal.SIGTERM)
    stubborn = python(tmp_path, "stubborn", "signal.signal(signal.SIGTERM, signal.SIG_IGN);" + STARTS + "time.sleep(9)")
    pids: list[int] = []

    def both_run() -> bool:
        words = stubborn.log.read_text()  # -u writes word by word
        pids[:] = [pid_of(stubborn), int(words.split()[1])] if words.endswith("\n") else []
        return len(pids) == 2 and all(map(alive, pids))

    assert supervised([stubborn], both_run) == []
    assert not alive(pids[0])
    by = time.monotonic() + 60
    while alive(pids[1]):  # killed, but not ours to wait for
        assert time.monotonic() < by
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_takes_another_with_it_and_both_start_again(tmp_path: Path) -> None:
    node = python(tmp_path, "node", f"print('here'); {WAIT}")
    worker = python(tmp_path, "worker", WAIT)
    worker.takes = [node]
    pids: list[int] = []

    def starts(times: int) -> Callable[[], bool]:
        return lambda: node.log.read_text() == "here\n" * times and worker.running is not None

    supervised(
        [node, worker],
        starts(1), lambda: kill(worker), starts(2),
        lambda: pids.append(pid_of(worker)) or kill(node), starts(3),
        lambda: pids.append(pid_of(worker)) or True,
    )  # fmt: skip
    assert pids[0] == pids[1]  # the other way round it does not


def test_what_they_write_and_their_secret_are_for_their_owner_alone(tmp_path: Path) -> None:
    writer = python(tmp_path, "writer", "open(sys.argv[1], 'w').close(); print('written');" + WAIT)
    writer.command = [*writer.command, str(tmp_path / "state.db")]
    supervised([writer], lambda: writer.log.exists() and "written" in writer.log.read_text())
    (tmp_path / "secret").write_text("an older one")
    (tmp_path / "secret").chmod(0o644)
    found = {new_secret(tmp_path).read_bytes() for _ in range(2)}
    assert list(map(len, found)) == [32, 32]
    for name in ("state.db", "secret"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(CheckpointError, match=r"cannot write .*none/secret: .*; check the folder, then run the same"):
        new_secret(tmp_path / "none")


def test_nothing_goes_out_and_nothing_is_installed(tmp_path: Path) -> None:
    found = environment(tmp_path)
    assert found["FLWR_HOME"] == str(tmp_path)
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["FLWR_DISABLE_UPDATE_CHECK"] == found["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)

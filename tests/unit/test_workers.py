"""Workers do what one process does, one client after the other; when one of them dies, that is said; none is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capfl.errors import ConfigError, WorkerError
from capfl.workers import AHEAD, Workers, check_workers

CLIENTS = ["a", "b", "c", "d", "e"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def kill_me(client: str, given: object) -> str:
    if client in "bd":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{client} is alive"


@pytest.mark.parametrize("number", [1, 2, 9])
def test_results_come_in_order_and_counts_are_summed_up(number: int) -> None:
    workers, here = Workers(number), os.getpid()
    workers.counts["done"] = 10

    def work(client: str, given: int) -> tuple[str, int, bool]:
        time.sleep(0.02 * (client == "a"))  # the first is the last to be done
        workers.counts["done"] += 1
        workers.counts[client] += given
        return client, given, os.getpid() == here

    found = list(workers.each(work, CLIENTS, ord))
    assert found == [(client, (client, ord(client), number == 1)) for client in CLIENTS]
    assert workers.counts == {"done": 15, **{client: ord(client) for client in CLIENTS}}
    assert workers.all(lambda client: client.upper(), CLIENTS) == ["A", "B", "C", "D", "E"]
    assert list(workers.each(work, [], ord)) == []


@pytest.mark.parametrize("number", [1, 2])
def test_few_are_asked_for_before_they_are_needed(number: int) -> None:
    asked: list[str] = []
    clients = [f"{i:02d}" for i in range(12)]
    for done, _ in enumerate(Workers(number).each(lambda *both: both, clients, lambda c: asked.append(c)), start=1):
        assert asked == clients[: len(asked)]
        assert done <= len(asked) <= (done if number == 1 else done + AHEAD * number)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("error", [ValueError("of c"), KeyboardInterrupt("of c"), SystemExit("of c")])
def test_what_work_raises_ends_it(number: int, error: BaseException) -> None:
    def work(client: str, given: object) -> str:
        if client == "c":
            raise error
        return client

    handed_on: list[str] = []
    with pytest.raises(type(error), match="of c"):
        handed_on.extend(client for client, _ in Workers(number).each(work, CLIENTS, str))
    assert handed_on == CLIENTS[: len(handed_on)]
    assert "c" not in handed_on


def test_what_cannot_be_pickled_is_an_error_and_no_hang() -> None:
    class Own(Exception):
        pass

    def work(client: str, given: object) -> object:
        if client == "b":
            raise Own("of b")
        return (lambda: client) if given == "d" else client

    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*Own: of b"):
        list(Workers(2).each(work, ["a", "b"], str))
    with pytest.raises(RuntimeError, match="lambda"):
        list(Workers(2).each(work, ["d"], str))


@pytest.mark.parametrize("number", [2, 3])
def test_a_worker_that_is_killed_is_replaced(number: int) -> None:
    found = dict(Workers(number).each(kill_me, CLIENTS, str))
    assert list(found) == CLIENTS
    for client, said in found.items():
        if client in "bd":
            assert isinstance(said, WorkerError)
            assert str(said).startswith("its worker was killed by SIGKILL; a system that has no memory left")
        else:
            assert said == f"{client} is alive"
    with pytest.raises(WorkerError, match="exit code 3"):
        Workers(number).all(lambda client: os._exit(3), CLIENTS)


def test_workers_can_be_asked_while_others_work() -> None:
    workers, found = Workers(2), []
    for client, _ in workers.each(lambda client, _: client, CLIENTS, str):
        ((again, _),) = workers.each(lambda client, _: client, [client], str)
        found.append(again)
    assert found == CLIENTS


def test_who_wants_no_more_leaves_no_worker() -> None:
    results = Workers(2).each(lambda client, _: time.sleep(0 if client == "a" else 60), CLIENTS, str)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []
    with Workers(2) as workers:
        kept = workers.each(lambda client, _: time.sleep(0 if client == "a" else 60), CLIENTS, str)
        next(kept)
    assert multiprocessing.active_children() == []  # although ``kept`` could go on


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(how: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C goes to all of them at once, the others to the first alone."""

    def work(client: str, given: object) -> None:
        (tmp_path / client).write_text(str(os.getpid()))
        time.sleep(60)

    def begin() -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the interruption's traceback
        list(Workers(2).each(work, CLIENTS, str))

    process = multiprocessing.get_context("fork").Process(target=begin)
    process.start()
    until(lambda: len([path for path in tmp_path.iterdir() if path.read_text()]) == 2)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert process.pid is not None
    (os.killpg if how is signal.SIGINT else os.kill)(process.pid, how)
    process.join(30)
    assert process.exitcode is not None
    until(lambda: not any(alive(pid) for pid in pids))


def until(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 30 s")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_where_there_can_be_no_workers_that_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    check_workers(2, "cpu")
    check_workers(1, "cuda")
    with pytest.raises(ConfigError, match=r"workers = 2: a base on cuda .*; set runtime.workers to 1, or model.device"):
        check_workers(2, "cuda")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match=r"on Linux only, and this is darwin; set runtime.workers to 1$"):
        check_workers(2, "cpu")

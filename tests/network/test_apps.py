"""Both of Flower's apps, handing messages to each other in one process: a run over them is the serial run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import Context, Error, Message, RecordDict

from capfl import site
from capfl.checkpoint import RunFolder
from capfl.config import Config, to_toml
from capfl.engines.flower import client_app
from capfl.engines.flower.exchange import Patience
from capfl.engines.flower.messages import Reply, Request, read_reply
from capfl.engines.flower.server_app import serve
from capfl.engines.flower.simulation import simulate
from capfl.engines.serial import serial
from capfl.errors import ClientError, public
from capfl.experiment import run
from capfl.report.progress import Callback
from capfl.report.summary import Summary
from capfl.types import Failure
from capfl.vault import MAGIC, open_vault
from fake_grid import FakeGrid
from sites import bits, config_for, write_files
from support import tiny_config

ALONE: dict[str, Any] = {"evaluation__references": []}
CA_PFL = ALONE | {"method__name": "ca-pfl", "federation__fraction": 0.6, "federation__rounds": 3}
FEEDBACK = {"codec__mask": "top", "codec__density": 0.1, "federation__rounds": 3}
OWN_FACTORS = ALONE | {"method__name": "fedsa-lora", "codec__values": "fp32"}
METHODS = pytest.mark.parametrize("changes", [CA_PFL, FEEDBACK, OWN_FACTORS], ids=["ca-pfl", "feedback", "fedsa-lora"])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A file for each client, with labels of its own."""
    return write_files(tmp_path / "data")


@pytest.fixture(scope="module")
def serially(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Summary, Path]]:
    """The serial run with some changes, and its folder; each is run once."""
    place, done = tmp_path_factory.mktemp("serial"), {}
    files = write_files(place / "data")

    def once(**changes: Any) -> tuple[Summary, Path]:
        if (name := repr(sorted(changes.items()))) not in done:
            done[name] = run(config_for(place / str(len(done)), files, **changes), serial)
        return done[name]

    return once


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    """Every test begins with nodes that have just started."""
    yield
    client_app.close()


About = tuple[str, str, int]  # kind, client and round of a message


class Apps(FakeGrid):
    """A node for each client, whose messages go to the client's app; and accidents to some messages."""

    def __init__(self, config: Config, files: dict[str, Path], state: Path) -> None:
        super().__init__({client: lambda request: None for client in files})
        given = {
            client: {"client": client, "data": str(path), "state": str(state / client)}
            for client, path in files.items()
        }
        self.contexts = {c: Context(1, 1, given[c], RecordDict(), {"config": to_toml(config)}) for c in files}
        self.lose: list[About] = []  # replies that do not arrive
        self.twice: list[About] = []  # requests that arrive twice
        self.late: list[About] = []  # replies in whose place that of the round before arrives
        self.said: dict[About, list[Reply]] = {}
        self.before: Callable[[Request], None] = lambda request: None

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        ids: list[str | None] = []
        for message in messages:
            ids += super().push_messages([message])
            _, name, request = self.sent[-1]
            self.before(request)
            about = (request.kind, request.client, request.round)
            for _ in range(1 + (about in self.twice)):
                answer = client_app.app(message=message, context=self.contexts[name])
                self.said.setdefault(about, []).append(read_reply(answer, 2**30))
            if about in self.lose:
                self.lose.remove(about)
                self.answer(message, 0.0, Error(5))
            elif about in self.late:
                self.late.remove(about)
                self.answer(message, 0.0, self.said[request.kind, request.client, request.round - 1][-1])
            else:
                self.answer(message, 0.0, self.said[about][-1])
        return ids


def networked(config: Config, files: dict[str, Path], state: Path, again: bool = False, **grid: Any) -> Summary:
    """A run over the apps; with ``theirs``, the nodes are given another config."""
    apps = Apps(grid.pop("theirs", config), files, state)
    for name, value in grid.items():
        setattr(apps, name, value)
    return serve(apps, sorted(files), config, again, Patience(60, 0), Callback())[0]


# -- the same bits -------------------------------------------------------------------------------------------


@METHODS
def test_a_run_over_nodes_is_the_serial_run_also_where_requests_arrive_twice(
    changes: dict[str, Any], tmp_path: Path, files: dict[str, Path], serially: Any
) -> None:
    one, whole = serially(**changes)
    twice: list[About] = [("train", "south", 1), ("train", "south", 2), ("evaluate", "west", one.rounds)]
    said: dict[About, list[Reply]] = {}
    two = networked(config_for(tmp_path / "nodes", files, **changes), files, tmp_path / "sites", twice=twice, said=said)
    assert (two.rows, two.ledger) == (one.rows, one.ledger)
    for name in ("state/server", "adapters/global"):
        assert bits(tmp_path / "nodes", name) == bits(whole, name)
    for client in files:
        (place,) = (tmp_path / "sites" / client / "runs").iterdir()
        assert bits(place / "adapter") == bits(whole / "adapters" / "clients" / client)
        for method in place.joinpath("state").iterdir():
            theirs = whole if method.name != "local" else whole / "references" / "local"
            for path in method.iterdir():
                assert path.read_bytes() == (theirs / "state" / "clients" / path.name).read_bytes()
    assert all(first == second for about in twice[:2] if about in said for first, second in [said[about][:2]])
    rows = [json.loads(line) for line in (tmp_path / "nodes" / "network.jsonl").read_text().splitlines()]
    assert [(row["event"], row["client"]) for row in rows] == [("joined", client) for client in files]


@pytest.mark.parametrize("changes", [CA_PFL | {"federation__fraction": 1.0}, FEEDBACK], ids=["ca-pfl", "feedback"])
def test_a_reply_that_is_lost_after_training_did_not_happen(
    changes: dict[str, Any], tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client goes on from the last update that the server used; also where its states are encrypted."""
    skip = ALONE | changes | {"federation__on_failure": "skip", "federation__rounds": 4}
    lost = [("train", "south", 2), ("train", "south", 3), ("train", "west", 3)]

    def unlucky(site: Any, store: Any, agreement: Any) -> Any:
        """The serial engine, whose clients fail in place of it."""
        whole = serial(site, store, agreement)

        def exchange(kind: Any, round: int, clients: Any, request: Any) -> Any:
            for client in clients:
                if (kind, client, round) in lost:
                    request(client)
                    yield client, Failure(client, "node", "it has gone", "network")
                else:
                    yield from whole(kind, round, [client], request)

        return exchange

    one, _ = run(config_for(tmp_path / "serial", files, **skip), unlucky)
    monkeypatch.setenv("SITE_KEY", "ab" * 32)
    locked = config_for(tmp_path / "nodes", files, **skip, runtime__state_key="env:SITE_KEY")
    two = networked(locked, files, tmp_path / "sites", lose=list(lost))
    assert (two.rows, two.ledger) == (one.rows, one.ledger)
    assert two.failures == one.failures == 3
    states = [path for path in tmp_path.glob("sites/*/runs/*/state/*/*") if path.is_file()]
    assert states
    assert all(path.read_bytes().startswith(MAGIC) for path in states)


def test_a_run_that_was_stopped_goes_on_with_the_same_clients_and_config_only(
    tmp_path: Path, files: dict[str, Path], serially: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one, whole = serially(**CA_PFL)
    config = config_for(tmp_path / "nodes", files, **CA_PFL)
    stopped = next(c for c in files if c in RunFolder(whole).rounds()[1].clients)
    with pytest.raises(ClientError, match="it has gone"):
        networked(config, files, tmp_path / "sites", lose=[("train", stopped, 2)])
    client_app.close()
    other = config_for(tmp_path / "nodes", files, **CA_PFL, train__learning_rate=0.5)
    with pytest.raises(ClientError, match=public("checkpoint")):
        networked(config, files, tmp_path / "sites", again=True, theirs=other)
    assert "begun by another run or config" in caplog.text
    two = networked(config, files, tmp_path / "sites", again=True)
    assert len(list((tmp_path / "sites" / stopped / "runs").iterdir())) == 1
    assert two.rows == one.rows
    assert bits(tmp_path / "nodes", "state/server") == bits(whole, "state/server")


def test_a_reply_of_an_earlier_round_is_refused_counted_and_asked_for_again(
    tmp_path: Path, files: dict[str, Path], serially: Any
) -> None:
    """Under the right request, so that only the message's own round gives it away."""
    one, _ = serially(**FEEDBACK)
    config = config_for(tmp_path / "nodes", files, **FEEDBACK, federation__on_failure="retry")
    lost, late = [("evaluate", "west", 4)], [("train", "south", 2)]
    two = networked(config, files, tmp_path / "sites", late=late, lose=lost)
    record = RunFolder(tmp_path / "nodes").rounds()[1]
    (failure,) = record.failures
    assert (failure.client, failure.stage) == ("south", "decode")
    assert failure.reason == "reply of client 'south' is for round 1, this is round 2"
    assert [row.personal for row in two.rows] == [row.personal for row in one.rows]
    (unread,) = [entry for entry in record.ledger if "unreadable" in entry.parts]
    assert (unread.client, unread.direction) == ("south", "up")  # it has crossed the wire, and is counted


def test_a_site_that_lost_its_memory_is_told_everything_anew(tmp_path: Path, files: dict[str, Path]) -> None:
    def disaster(request: Request) -> None:
        if (request.kind, request.client, request.round) == ("train", "south", 3) and not disasters:
            disasters.append(request)
            client_app.close()
            shutil.rmtree(tmp_path / "sites" / "south")

    disasters: list[Request] = []
    config = config_for(tmp_path / "nodes", files, **ALONE | FEEDBACK, federation__on_failure="retry")
    networked(config, files, tmp_path / "sites", before=disaster)
    rounds = RunFolder(tmp_path / "nodes").rounds()
    (failure,) = [failure for record in rounds for failure in record.failures]
    assert (failure.client, failure.stage) == ("south", "train")
    assert all(record.clients == ("north", "south", "west") for record in rounds)
    told = [entry.bytes for entry in rounds[2].ledger if (entry.client, entry.direction) == ("south", "down")]
    assert len(told) == 2
    assert told[1] > told[0]  # it is charged for what it is told again


def test_a_simulated_network_is_the_serial_run_also_where_data_are_dealt_out_and_states_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"partition__kind": "iid", "partition__clients": 4, "evaluation__every": 0, **ALONE, **FEEDBACK}
    shared |= {"federation__fraction": 0.6, "federation__rounds": 2}
    one, whole = run(tiny_config(tmp_path / "serial", **shared), serial)
    monkeypatch.setenv("SITE_KEY", "ab" * 32)
    locked = tiny_config(tmp_path / "nodes", **shared, runtime__state_key="env:SITE_KEY")
    two, out = simulate(locked, False, Callback())
    assert (two.rows, two.ledger) == (one.rows, one.ledger)
    assert bits(out, "state/server") == bits(whole, "state/server")
    for row in two.rows:
        assert bits(out / "nodes" / row.id / "adapter") == bits(whole / "adapters" / "clients" / row.id)
    vault, states = open_vault("env:SITE_KEY", out), list(out.glob("nodes/*/state/fedit/*"))
    assert states
    for path in states:
        assert path.read_bytes().startswith(MAGIC)
        plain = whole / "state" / "clients" / path.name
        assert vault.unlock(path.read_bytes(), path) == plain.read_bytes()


# -- failures ------------------------------------------------------------------------------------------------


def crash(*_: object) -> None:
    raise ValueError("Patient Miller\x1b[2J")


MILLER = {"prompt": "Patient Miller asks", "completion": "Miller " * 300}


@pytest.mark.parametrize(
    ("row", "changes", "code"),
    [
        ({"text": "Patient Miller", "label": "Miller"}, {"data__labels": ["a", "b", "c", "d"]}, "data"),
        (MILLER, {"data__scoring": "text", "data__max_length": 64}, "data"),
        (None, {}, "internal"),
    ],
    ids=["label", "length", "bug"],
)
def test_no_text_of_a_sites_error_reaches_the_server(
    row: dict[str, str] | None,
    changes: dict[str, Any],
    code: str,
    tmp_path: Path,
    files: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a row nor a label nor a path, nor what an error says that is not ours. The site's own log has it."""
    if row is None:
        visit = site.visit
        monkeypatch.setattr(
            site, "visit", lambda kind, *about: crash() if about[2].client == "south" else visit(kind, *about)
        )
    else:
        files["south"].write_text((json.dumps(row) + "\n") * 30)
    skip = ALONE | {"federation__on_failure": "skip", "federation__rounds": 1}
    networked(config_for(tmp_path / "nodes", files, **skip, **changes), files, tmp_path / "sites")
    (record,) = RunFolder(tmp_path / "nodes").rounds()
    assert record.failures == (Failure("south", "train", public(code), code),)
    assert "Miller" in caplog.text
    assert "\x1b" not in caplog.text
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("nodes/**/*") if path.is_file())
    assert b"Miller" not in kept


@pytest.mark.parametrize(
    ("theirs", "said", "code"),
    [
        ({"codec__values": "bf16"}, "the sites' codecs differ; align configs", "wire"),
        ({"method__name": "ditto"}, "method 'fedit' is not one of this run's: ditto, local", "config"),
    ],
    ids=["codec", "method"],
)
def test_a_site_with_another_config_refuses(
    theirs: dict[str, Any],
    said: str,
    code: str,
    tmp_path: Path,
    files: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, other = config_for(tmp_path / "nodes", files), config_for(tmp_path / "nodes", files, **theirs)
    with pytest.raises(ClientError, match=rf"client 'north' failed in round 1 \(train\): {public(code)}"):
        networked(config, files, tmp_path / "sites", theirs=other)
    assert said in caplog.text

"""Both of Flower's apps, handing messages to each other in one process: a run over them is the serial run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import Context, Error, Message, RecordDict

from capfl.checkpoint import RunFolder
from capfl.config import Config, to_toml
from capfl.engines.flower import client_app
from capfl.engines.flower.delivery import Patience
from capfl.engines.flower.records import Ask, Reply, pack, unpack
from capfl.engines.flower.server_app import serve
from capfl.engines.flower.simulation import simulate
from capfl.engines.serial import serial
from capfl.errors import CheckpointError, ClientError, ConfigError
from capfl.experiment import run
from capfl.model.base import load_base
from capfl.report.progress import Callback
from capfl.report.summary import Summary
from capfl.types import Failure
from fake_grid import FakeGrid
from sites import bits, config_for, write_files
from support import tiny_config


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A file for each client, with labels of its own."""
    return write_files(tmp_path / "data")


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    """Every test begins with nodes that have just started."""
    yield
    client_app.close()


class Apps(FakeGrid):
    """A node for each client, whose messages go to the client's app."""

    def __init__(self, config: Config, files: dict[str, Path], state: Path) -> None:
        super().__init__({})
        self.contexts: dict[int, Context] = {}
        for node, (client, path) in enumerate(files.items(), start=100):
            given = {"client": client, "data": str(path), "state": str(state / client)}
            self.contexts[node] = Context(1, node, given, RecordDict(), {"config": to_toml(config)})
            self.nodes[node] = lambda ask: None
        self.lose: list[tuple[str, str, int]] = []  # (kind, client, round) of replies that do not arrive
        self.twice: list[tuple[str, str, int]] = []  # of requests that arrive twice
        self.late: list[tuple[str, str, int]] = []  # of replies in whose place that of the round before arrives
        self.said: dict[tuple[str, str, int], list[Reply]] = {}
        self.before: Callable[[Ask], None] = lambda ask: None

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        ids: list[str | None] = []
        for message in messages:
            ids += super().push_messages([message])
            _, node, ask = self.sent[-1]
            self.before(ask)
            about = (ask.kind, ask.client, ask.round)
            for _ in range(1 + (about in self.twice)):
                reply = client_app.app(message=message, context=self.contexts[node])
                self.said.setdefault(about, []).append(unpack(Reply, reply.content))
            if about in self.lose:
                self.lose.remove(about)
                self.answer(message, 0.0, Error(5))
            elif about in self.late:
                self.late.remove(about)
                self.answer(message, 0.0, self.said[ask.kind, ask.client, ask.round - 1][-1])
            else:
                self.answer(message, 0.0, self.said[about][-1])
        return ids


def networked(config: Config, files: dict[str, Path], state: Path, again: bool = False, **grid: Any) -> Summary:
    """A run over the apps; with ``theirs``, the nodes are given another config."""
    apps = Apps(grid.pop("theirs", config), files, state)
    for name, value in grid.items():
        setattr(apps, name, value)
    return serve(apps, sorted(files), config, again, Patience(60, 0), Callback())[0]


METHODS = {
    "fedit": {},
    "ca-pfl": {"method__name": "ca-pfl"},
    "feedback": {"codec__mask": "top", "codec__density": 0.1},
    "some": {"federation__fraction": 0.6, "federation__rounds": 4},
    "own factors": {"method__name": "fedsa-lora", "codec__values": "fp32"},
}


@pytest.mark.parametrize("changes", METHODS.values(), ids=list(METHODS))
def test_a_run_over_nodes_is_the_serial_run(changes: dict[str, Any], tmp_path: Path, files: dict[str, Path]) -> None:
    one, _ = run(config_for(tmp_path / "serial", files, **changes), serial)
    two = networked(config_for(tmp_path / "nodes", files, **changes), files, tmp_path / "sites")
    assert two.rows == one.rows
    assert two.ledger == one.ledger
    assert bits(tmp_path / "nodes" / "state" / "server") == bits(tmp_path / "serial" / "state" / "server")
    assert bits(tmp_path / "nodes" / "adapters" / "global") == bits(tmp_path / "serial" / "adapters" / "global")
    for client in files:
        (place,) = (tmp_path / "sites" / client / "runs").iterdir()
        kept = bits(tmp_path / "serial" / "adapters" / "clients" / client)
        assert bits(place / "adapter") == kept
        for method in place.joinpath("state").iterdir():
            whole = tmp_path / "serial" if method.name != "local" else tmp_path / "serial" / "references" / "local"
            for path in method.iterdir():
                assert path.read_bytes() == (whole / "state" / "clients" / path.name).read_bytes()


@pytest.mark.parametrize("changes", [METHODS["feedback"], METHODS["ca-pfl"], METHODS["own factors"]])
def test_a_reply_that_is_lost_after_training_did_not_happen(
    changes: dict[str, Any], tmp_path: Path, files: dict[str, Path]
) -> None:
    """A client goes on from the last update that the server used, as if it had failed before it trained."""
    skip = changes | {"federation__on_failure": "skip", "federation__rounds": 4, "evaluation__references": []}
    lost = [("train", "south", 2), ("train", "south", 3), ("train", "west", 3)]

    def unlucky(site: Any, store: Any, agreement: Any) -> Any:
        """The serial engine, whose clients fail in place of it."""
        whole = serial(site, store, agreement)

        def exchange(kind: Any, round: int, clients: Any, request: Any) -> Any:
            for client in clients:
                if (kind, client, round) in lost:
                    request(client)
                    yield client, Failure(client, "node", "it has gone")
                else:
                    yield from whole(kind, round, [client], request)

        return exchange

    one, _ = run(config_for(tmp_path / "serial", files, **skip), unlucky)
    two = networked(config_for(tmp_path / "nodes", files, **skip), files, tmp_path / "sites", lose=list(lost))
    assert two.rows == one.rows
    assert two.ledger == one.ledger
    assert two.failures == one.failures == 3


def test_a_lost_reply_is_asked_for_again(tmp_path: Path, files: dict[str, Path]) -> None:
    retry = METHODS["feedback"] | {"federation__on_failure": "retry"}
    one, _ = run(config_for(tmp_path / "serial", files, **retry), serial)
    lost = [("train", "south", 2), ("evaluate", "west", 3)]
    two = networked(config_for(tmp_path / "nodes", files, **retry), files, tmp_path / "sites", lose=lost)
    assert [row.personal for row in two.rows] == [row.personal for row in one.rows]
    assert two.failures == 1


def test_a_run_that_was_stopped_goes_on_with_the_same_clients(tmp_path: Path, files: dict[str, Path]) -> None:
    settings = METHODS["ca-pfl"] | {"federation__rounds": 3}
    one, _ = run(config_for(tmp_path / "serial", files, **settings), serial)
    config = config_for(tmp_path / "nodes", files, **settings)
    with pytest.raises(ClientError, match="it has gone"):
        networked(config, files, tmp_path / "sites", lose=[("train", "south", 2)])
    assert len(list((tmp_path / "sites" / "south" / "runs").iterdir())) == 1
    two = networked(config, files, tmp_path / "sites", again=True)
    assert len(list((tmp_path / "sites" / "south" / "runs").iterdir())) == 1
    assert two.rows == one.rows
    assert bits(tmp_path / "nodes" / "state" / "server") == bits(tmp_path / "serial" / "state" / "server")


def test_a_site_that_lost_its_memory_is_told_everything_anew(tmp_path: Path, files: dict[str, Path]) -> None:
    def disaster(ask: Ask) -> None:
        if (ask.kind, ask.client, ask.round) == ("train", "south", 3) and not disasters:
            disasters.append(ask)
            client_app.close()
            shutil.rmtree(tmp_path / "sites" / "south")

    disasters: list[Ask] = []
    settings = METHODS["feedback"] | {"federation__on_failure": "retry", "federation__rounds": 4}
    config = config_for(tmp_path / "nodes", files, **settings)
    summary = networked(config, files, tmp_path / "sites", before=disaster)
    assert [row.id for row in summary.rows] == ["north", "south", "west"]
    rounds = RunFolder(tmp_path / "nodes").rounds()
    (failure,) = [failure for record in rounds for failure in record.failures]
    assert (failure.client, failure.stage) == ("south", "WireError")
    assert all(record.clients == ("north", "south", "west") for record in rounds)
    told = [entry.bytes for entry in rounds[2].ledger if (entry.client, entry.direction) == ("south", "down")]
    assert len(told) == 2
    assert told[1] > told[0]  # it is charged for what it is told again


@pytest.mark.parametrize("changes", [METHODS["feedback"], METHODS["ca-pfl"], METHODS["own factors"]])
def test_a_request_that_arrives_twice_is_answered_twice_with_the_same_bits(
    changes: dict[str, Any], tmp_path: Path, files: dict[str, Path]
) -> None:
    one, _ = run(config_for(tmp_path / "serial", files, **changes), serial)
    twice, said = [("train", "south", 1), ("train", "south", 2), ("evaluate", "west", 3)], {}
    config = config_for(tmp_path / "nodes", files, **changes)
    two = networked(config, files, tmp_path / "sites", twice=twice, said=said)
    assert two.rows == one.rows
    assert two.ledger == one.ledger
    assert bits(tmp_path / "nodes" / "state" / "server") == bits(tmp_path / "serial" / "state" / "server")
    for about in twice[:2]:
        first, second = said[about][:2]
        assert first == second


def test_a_reply_of_an_earlier_round_is_refused_and_recorded(tmp_path: Path, files: dict[str, Path]) -> None:
    """Under the right request, so that only the message's own round gives it away."""
    retry = METHODS["feedback"] | {"federation__on_failure": "retry", "federation__rounds": 3}
    one, _ = run(config_for(tmp_path / "serial", files, **retry), serial)
    config = config_for(tmp_path / "nodes", files, **retry)
    two = networked(config, files, tmp_path / "sites", late=[("train", "south", 2)])
    (failure,) = RunFolder(tmp_path / "nodes").rounds()[1].failures
    assert (failure.client, failure.stage) == ("south", "decode")
    assert failure.reason == "reply of client 'south' is for round 1, this is round 2"
    assert [row.personal for row in two.rows] == [row.personal for row in one.rows]
    (unread,) = [e for e in RunFolder(tmp_path / "nodes").rounds()[1].ledger if "unreadable" in e.parts]
    assert (unread.client, unread.direction) == ("south", "up")  # it has crossed the wire, and is counted


def test_a_site_with_another_base_is_refused(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capfl.site.load_base", lambda config: replace(load_base(config), revision="another"))
    with pytest.raises(
        ClientError, match=r"\(WireError\): .*for another adapter: base model, targets, layers or ranks differ"
    ):
        networked(config_for(tmp_path / "nodes", files), files, tmp_path / "sites")


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"lora__rank": 2}, r"\(WireError\): .*for another adapter: base model, targets, layers or ranks differ"),
        ({"codec__values": "bf16"}, r"\(WireError\): .*the sites' codecs differ; align configs"),
        ({"method__name": "ditto"}, r"\(ConfigError\): method 'fedit' is not one of this run's: ditto, local"),
    ],
    ids=["rank", "codec", "method"],
)
def test_a_site_with_another_config_is_refused(
    theirs: dict[str, Any], said: str, tmp_path: Path, files: dict[str, Path]
) -> None:
    config = config_for(tmp_path / "nodes", files)
    with pytest.raises(ClientError, match=said):
        networked(config, files, tmp_path / "sites", theirs=config_for(tmp_path / "nodes", files, **theirs))


def test_a_run_does_not_go_on_at_its_sites_with_another_config(tmp_path: Path, files: dict[str, Path]) -> None:
    config = config_for(tmp_path / "nodes", files)
    with pytest.raises(ClientError, match="it has gone"):
        networked(config, files, tmp_path / "sites", lose=[("train", "south", 2)])
    client_app.close()
    other = config_for(tmp_path / "nodes", files, train__learning_rate=0.5)
    with pytest.raises(ClientError, match=r"\(CheckpointError\): .*begun by another run or config"):
        networked(config, files, tmp_path / "sites", again=True, theirs=other)


def test_what_goes_wrong_at_a_site_comes_back_as_a_failure(tmp_path: Path, files: dict[str, Path]) -> None:
    files["south"].unlink()
    config = config_for(tmp_path / "nodes", files)
    with pytest.raises(ClientError, match=r"client 'south' failed in round 1 \(DataError\): .*south\.jsonl"):
        networked(config, files, tmp_path / "sites")


@pytest.mark.parametrize("run_name", ["../elsewhere", ".hidden", "a/b", ""])
def test_a_run_cannot_leave_its_folder_at_the_site(run_name: str, tmp_path: Path, files: dict[str, Path]) -> None:
    apps = Apps(config_for(tmp_path / "out", files), files, tmp_path / "sites")
    question = Message(pack(Ask(run_name, "train", "fedit", 1, "north")), dst_node_id=100, message_type="train")
    apps.push_messages([question])
    (reply,) = apps.pull_messages([question.metadata.message_id])
    assert unpack(Reply, reply.content).stage == "WireError"
    assert not list(tmp_path.glob("sites/**/site.json"))


def test_nodes_are_noted_in_the_runs_folder(tmp_path: Path, files: dict[str, Path]) -> None:
    networked(config_for(tmp_path / "nodes", files, evaluation__references=[]), files, tmp_path / "sites")
    rows = [json.loads(line) for line in (tmp_path / "nodes" / "network.jsonl").read_text().splitlines()]
    assert [(row["event"], row["client"]) for row in rows] == [("joined", c) for c in files]
    name = json.loads((tmp_path / "nodes" / "network.json").read_text())["run"]
    assert name.startswith("nodes-")


def test_a_pooled_reference_is_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    config = config_for(tmp_path / "nodes", files, evaluation__references=["centralised"])
    with pytest.raises(ConfigError, match="everybody's data"):
        networked(config, files, tmp_path / "sites")


def test_an_apps_folder_that_is_no_run_is_not_resumed(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        networked(config_for(tmp_path / "nodes", files), files, tmp_path / "sites", again=True)


@pytest.mark.parametrize("changes", [METHODS["feedback"], METHODS["some"]], ids=["feedback", "some"])
def test_a_simulated_network_is_the_serial_run_also_where_data_are_dealt_out(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    shared = changes | {"partition__kind": "iid", "partition__clients": 4, "evaluation__every": 0}
    one, _ = run(tiny_config(tmp_path / "serial", **shared), serial)
    two, _ = simulate(tiny_config(tmp_path / "nodes", **shared), False, Callback())
    assert two.rows == one.rows
    assert two.ledger == one.ledger
    assert bits(tmp_path / "nodes" / "state" / "server") == bits(tmp_path / "serial" / "state" / "server")
    for row in two.rows:
        kept = bits(tmp_path / "nodes" / "nodes" / row.id / "adapter")
        assert kept == bits(tmp_path / "serial" / "adapters" / "clients" / row.id)


def test_a_simulated_network_validates_by_message_and_goes_on(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "nodes", federation__rounds=3)
    one, _ = simulate(config, False, Callback())
    record = RunFolder(tmp_path / "nodes").rounds()[0]
    assert record.validation_loss is not None
    two, _ = simulate(config, True, Callback())
    assert two.rows == one.rows

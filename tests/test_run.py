"""A whole run, from config to folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from capfl.checkpoint import ClientStore, RunFolder, StateReader
from capfl.engines.serial import serial
from capfl.errors import ConfigError
from capfl.experiment import run
from capfl.model.base import load_base
from capfl.model.export import load_adapter
from capfl.model.lora import AdaptedModel
from capfl.report.summary import Summary
from capfl.roles import client as side
from capfl.roles import server
from capfl.roles.agreement import Agreement, agreements
from capfl.roles.client import LocalTrainer
from capfl.types import Adapter, ClientId, ClientState, Exchange, ServerState
from capfl.workers import Workers
from sites import write_files
from support import tiny_config, tiny_run

PEERS: dict[str, object] = {
    "method__name": "ca-pfl", "method__peers": 0.03, "codec__values": "ternary",
    "data__sites": 4, "data__items": 48, "partition__kind": "conflict", "partition__clients": 4,
    "evaluation__references": ["local", "centralised"],
}  # fmt: skip
"""Four clients, two with one code book and two with another."""


@dataclasses.dataclass(frozen=True)
class Done:
    out: Path
    summary: Summary
    agreed: Agreement
    state: ServerState


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("peers") / "run"
    summary, config = tiny_run(out, **PEERS), tiny_config(out, **PEERS)
    model = AdaptedModel(load_base(config.model), config.lora)
    agreed = agreements(config, model.initial_adapter(config.seed), model.base.digest)["ca-pfl"]
    state = RunFolder(out).state(StateReader(agreed.method, agreed.initial))
    assert state is not None
    return Done(out, summary, agreed, state)


def bits(out: Path) -> dict[str, bytes]:
    """Everything a run computed: server state, client states, adapters. Not times, not versions."""
    kept = [p for p in sorted(out.rglob("*")) if p.is_file() and p.suffix not in (".json", ".jsonl", ".toml")]
    return {str(p.relative_to(out)): p.read_bytes() for p in kept}


def tensors(folder: Path) -> Adapter:
    return load_file(folder / "adapter_model.safetensors")


# -- the folder ------------------------------------------------------------------------------------------------


def test_the_folder_has_the_runs_files(peers: Done) -> None:
    out, clients = peers.out, [row.id for row in peers.summary.rows]
    assert len(clients) == 4
    names = {str(p.relative_to(out)) for p in out.rglob("*")}
    assert {"config.toml", "run.json", "partition.json", "rounds.jsonl", "summary.json", "state/server"} <= names
    saved = json.loads((out / "summary.json").read_text())
    assert saved == json.loads(json.dumps(peers.summary.to_json()))
    assert [row["id"] for row in saved["clients"]] == clients
    assert list(json.loads((out / "partition.json").read_text())) == clients
    assert {p.name for p in (out / "adapters/clients").iterdir()} == set(clients)
    assert {p.name for p in (out / "references").iterdir()} == {"local", "centralised"}
    for row in saved["clients"]:
        assert all(row[model] is not None for model in ("base", "shared", "personal", "local_only", "centralised"))


def test_groups_are_recorded_and_their_adapters_are_what_their_members_are_sent(peers: Done) -> None:
    groups = [record.groups for record in RunFolder(peers.out).rounds()]
    assert groups[-1] == peers.state.group_of
    assert set(groups[0].values()) == {"group-1", "group-2"}  # the tiny model tells code books apart by chance
    places = {p.name: p for p in (peers.out / "adapters/groups").iterdir()}
    assert set(places) == set(groups[0].values())
    for client, group in peers.state.group_of.items():
        whole = sent_to(client, peers)
        assert equal(load_adapter(places[group])[0], whole)
        assert not equal(load_adapter(peers.out / "adapters/global")[0], whole)
    assert equal(load_adapter(peers.out / "adapters/global")[0], known_by_all(peers.state))


def sent_to(client: ClientId, of: Done) -> Adapter:
    trainer = LocalTrainer(client, 1, lambda *_: pytest.fail("nobody trains here"))
    blob = server.request(of.state, client, of.agreed, again=True).blob
    memory = side.received(side.opened(blob, trainer, of.agreed), ClientState(client), of.agreed)
    return of.agreed.whole(memory.known)


def known_by_all(state: ServerState) -> Adapter:
    return state.everybody.adapter | state.everybody.known


def equal(a: Adapter, b: Adapter) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_records_are_lines_of_json(peers: Done) -> None:
    records = RunFolder(peers.out).rounds()
    assert [r.round for r in records] == [1, 2]
    assert all("accuracy" in r.validation and len(r.kappa) == len(r.ranks) == 4 for r in records)
    lines = (peers.out / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps([dataclasses.asdict(r) for r in records]))


def test_a_folder_in_use_is_refused(peers: Done) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        tiny_run(peers.out)


# -- what does not matter ----------------------------------------------------------------------------------------


def test_one_seed_gives_identical_bits_in_any_order_of_visits_and_another_seed_does_not(runs: Path) -> None:
    def backwards(
        trainer: Callable[[ClientId], LocalTrainer], store: ClientStore, agreement: Agreement, workers: Workers
    ) -> Exchange:
        forwards = serial(trainer, store, agreement)
        before = {name: t.clone() for name, t in agreement.initial.items()}

        def exchange(kind, round, clients, request):  # type: ignore[no-untyped-def]
            yield from sorted(forwards(kind, round, clients[::-1], request))
            assert equal(before, agreement.initial), "a client has touched the server's tensors"

        return exchange

    tiny_run(runs / "a", data__sites=4)
    run(tiny_config(runs / "b", data__sites=4), backwards)
    tiny_run(runs / "c", data__sites=4, seed=1)
    one, other, third = bits(runs / "a"), bits(runs / "b"), bits(runs / "c")
    assert one == other
    assert one["state/server"] != third["state/server"]


def test_a_client_without_peers_ends_where_training_alone_does(runs: Path) -> None:
    """To the bit, with all ranks: joining takes nothing from it."""
    shared = {"federation__rounds": 3, "evaluation__every": 0}
    alone = tiny_run(runs / "a", method__name="local", **shared)
    apart = {"method__name": "ca-pfl", "method__peers": 1e-12, "method__rank_floor": 0.0}
    joined = tiny_run(runs / "b", codec__values="ternary", **apart, **shared)
    for row in alone.rows:
        mine, theirs = (tensors(runs / at / "adapters/clients" / row.id) for at in "ba")
        assert equal(mine, theirs)
    assert [row.personal for row in joined.rows] == [row.personal for row in alone.rows]
    assert sum(row.bytes_up for row in joined.rows) > 1000


def test_a_client_may_have_any_name(tmp_path: Path) -> None:
    """That of a reference's one client of all data, or of a group, is taken for neither."""
    files = write_files(tmp_path / "data")
    names = {"north": "all", "south": "everybody", "west": "group-1"}
    paths = [str(path.rename(path.with_stem(names[old]))) for old, path in files.items()]
    summary = tiny_run(
        tmp_path / "run", data__sets=paths, partition__kind="by_task", evaluation__references=["local", "centralised"]
    )
    held = {row.id: row.n_train for row in summary.rows}
    splits = json.loads((tmp_path / "run/partition.json").read_text())
    assert held == {client: len(own["train"]) for client, own in splits.items()}
    assert len(set(held.values())) == 3
    assert set(held) == set(names.values())


# -- the ledger --------------------------------------------------------------------------------------------------


def test_the_ledger_counts_every_message(runs: Path) -> None:
    summary = tiny_run(runs)
    trained = tensors(runs / "adapters/global")
    assert all(bool(t.any()) for name, t in trained.items() if "lora_B" in name)
    n_values = sum(t.numel() for t in trained.values())
    assert len(summary.ledger) == 2 * 3 * 2  # two clients, two rounds and the evaluation, both ways
    for entry in summary.ledger:
        assert sum(entry.parts.values()) == entry.bytes
        if entry.round == 1 and entry.direction == "down":  # everybody has what there is before the first round
            assert entry.bytes == 42 + len(entry.client)
        elif entry.round == 3 and entry.direction == "up":
            assert set(entry.parts) == {"header", "scores"}
        else:  # four bytes a value; the few that are zero, or as they began, are not sent
            assert 0.95 * 4 * n_values < entry.parts["values"] <= 4 * n_values
    assert {entry.round for entry in summary.ledger} == {1, 2, 3}
    assert sum(summary.total_bytes(way) for way in ("up", "down")) == sum(entry.bytes for entry in summary.ledger)

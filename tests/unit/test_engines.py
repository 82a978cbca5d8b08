"""Engines: what becomes of a client that raises, and what its state is then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from capfl.checkpoint import ClientStore
from capfl.config.schema import CodecConfig
from capfl.engines.debug import debug
from capfl.engines.serial import serial
from capfl.engines.simulation import ENGINES
from capfl.errors import CheckpointError, ClientError, TrainingError
from capfl.methods.local import local
from capfl.roles import Agreement, server
from capfl.roles.client import Site
from capfl.types import Adapter, ClientState, Failure, Trained
from capfl.wire import decode_update

START = {"m.A": torch.tensor([[1.0]]), "m.B": torch.tensor([[2.0]])}
AGREED = Agreement(local(), CodecConfig(values="fp32"), START)  # a method whose clients remember something
STATE = server.start(AGREED)


def site(client: str) -> Site:
    def train(start: Adapter, round: int, first: int, penalty: object) -> Trained:
        if client == "b":
            raise TrainingError("the loss is nan")
        if client == "quiet":
            raise ValueError
        return Trained({name: t + 1 for name, t in start.items()}, (1.0, 3.0))

    return Site(client, 7, train)


@pytest.fixture
def store(tmp_path: Path) -> ClientStore:
    return ClientStore(tmp_path / "clients", START, lambda client: AGREED.method.init_client(client, START))


def asked(client: str) -> bytes:
    return server.request(STATE, client, AGREED).blob


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_every_client_answers_in_order_and_its_state_is_saved(engine, store):
    replies = list(engine(site, store, AGREED)("train", 1, ["a", "c"], asked))
    assert [client for client, _ in replies] == ["a", "c"]
    for client, reply in replies:
        got, _ = decode_update(reply, AGREED.up, AGREED.schema, START)
        assert (got.client, got.round, got.n_train, got.steps, got.loss) == (client, 1, 7, 2, 2.0)
        memory = store.load(client, before=2)
        assert memory.steps == 2
        assert memory.adapter["m.A"].tolist() == [[2.0]]
        assert store.load(client, before=1).steps == 0  # the round can be run again


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_a_client_works_only_when_its_reply_is_asked_for(engine, store):
    visited = []

    def request(client: str) -> bytes:
        visited.append(client)
        return asked(client)

    replies = engine(site, store, AGREED)("train", 1, ["a", "c"], request)
    assert visited == []
    next(replies)
    assert visited == ["a"]
    assert (store.load("a", before=2).steps, store.load("c", before=2).steps) == (2, 0)


def test_serial_turns_an_error_into_a_failure_and_goes_on(store):
    replies = dict(serial(site, store, AGREED)("train", 1, ["a", "b", "c"], asked))
    assert replies["b"] == Failure("b", "TrainingError", "the loss is nan")
    assert isinstance(replies["a"], bytes)
    assert isinstance(replies["c"], bytes)
    assert store.load("b", before=9) == ClientState("b", adapter=START)  # nothing was saved


def test_serial_gives_a_reason_even_where_the_error_has_none(store):
    assert list(serial(site, store, AGREED)("train", 1, ["quiet"], asked)) == [
        ("quiet", Failure("quiet", "ValueError", "no reason given"))
    ]


def test_a_failure_keeps_the_state_of_the_round_before(store):
    store.save(ClientState("b", 4, START), 1)
    list(serial(site, store, AGREED)("train", 2, ["b"], asked))
    assert store.load("b", before=3).steps == 4


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_a_damaged_request_is_the_clients_failure(engine, store):
    replies = engine(site, store, AGREED)("train", 1, ["a"], lambda client: asked(client)[:-1])
    if engine is serial:
        ((client, failure),) = replies
        assert (client, failure.stage) == ("a", "WireError")
    else:
        with pytest.raises(ClientError, match="WireError"):
            list(replies)
    assert store.load("a", before=2).steps == 0


def test_debug_raises_with_the_original_error(store):
    replies = debug(site, store, AGREED)("train", 3, ["a", "b", "c"], asked)
    assert next(replies)[0] == "a"
    with pytest.raises(ClientError, match=r"client 'b' failed in round 3 \(TrainingError\): the loss is nan") as caught:
        next(replies)
    assert isinstance(caught.value.__cause__, TrainingError)
    assert store.load("b", before=9).steps == 0


def test_an_interruption_is_nobodys_failure(store):
    def interrupted(client: str) -> Site:
        raise KeyboardInterrupt

    for engine in ENGINES.values():
        with pytest.raises(KeyboardInterrupt):
            list(engine(interrupted, store, AGREED)("train", 1, ["a"], asked))


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
@pytest.mark.parametrize("when", ["load", "save"])
def test_an_error_of_the_runs_disk_is_not_the_clients_failure(engine, when, store):
    store.save(ClientState("a", 1, START), 1)
    if when == "load":
        next(iter(store.folder.iterdir())).write_bytes(b"damaged")
    else:
        store.folder.rename(store.folder.with_name("elsewhere"))
        store.folder.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError):
        list(engine(site, store, AGREED)("train", 2, ["a"], asked))

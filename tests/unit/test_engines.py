"""The serial engine: what becomes of a client that raises, and what its state is then; and the codes of errors."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from capfl import errors
from capfl.checkpoint import ClientStore, StateReader
from capfl.config.schema import CodecConfig, MethodConfig
from capfl.engines.serial import serial
from capfl.errors import PUBLIC, CapflError, CheckpointError, TrainingError, VersionError, code_of, printable, public
from capfl.methods import build
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import LocalTrainer, Lot
from capfl.types import Adapter, ClientState, Failure, LocalSteps, Trained
from capfl.wire import decode_update
from capfl.workers import Workers

START = {"m.A": torch.tensor([[1.0]]), "m.B": torch.tensor([[2.0]])}
AGREED = Agreement(build(MethodConfig(name="local")), CodecConfig(values="fp32"), START)  # clients remember something
STATE = AGREED.method.start(START)


def trainer(client: str) -> LocalTrainer:
    def train(start: Adapter, round: int, first: int, penalty: object) -> Trained:
        if client == "b":
            raise TrainingError("the loss is nan")
        if client == "bug":
            raise ValueError
        if client == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return Trained({name: t + 1 for name, t in start.items()}, (1.0, 3.0))

    if client == "interrupted":
        raise KeyboardInterrupt
    return LocalTrainer(client, 7, train)


@pytest.fixture
def store(tmp_path: Path) -> ClientStore:
    return ClientStore(tmp_path / "clients", StateReader(AGREED.method, START))


def asked(client: str) -> bytes:
    return server.request(STATE, client, AGREED).blob


def asked_in_round_3(client: str) -> bytes:
    return server.request(replace(STATE, round=2), client, AGREED).blob


def test_clients_work_in_order_when_their_replies_are_asked_for_and_their_states_are_saved(store: ClientStore) -> None:
    visited: list[str] = []

    def request(client: str) -> bytes:
        visited.append(client)
        return asked(client)

    replies = serial(trainer, store, AGREED)("train", 1, ["a", "c"], request)
    assert visited == []
    for number, (client, reply) in enumerate(replies, start=1):
        assert visited == ["a", "c"][:number]
        assert isinstance(reply, bytes)
        got, _ = decode_update(reply, AGREED.up, AGREED.schema, START, 1)
        assert (got.client, got.round, got.n_train, got.steps, got.loss) == (client, 1, 7, 2, 2.0)
        memory = store.load(client, before=2)
        assert memory.steps == 2
        assert memory.adapter["m.A"].tolist() == [[2.0]]
        assert store.load(client, before=1).steps == 0  # the round can be run again


def test_an_error_is_a_failure_of_its_client_and_its_traceback_is_logged(
    store: ClientStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(ClientState("b", 4, adapter=START), 1)

    def damaged(client: str) -> bytes:
        return asked(client)[: -1 if client == "c" else None]

    with caplog.at_level(logging.DEBUG):
        replies = dict(serial(trainer, store, AGREED)("train", 2, ["a", "b", "bug", "c"], damaged))
    assert isinstance(replies["a"], bytes)
    assert replies["b"] == Failure("b", "train", "the loss is nan", "training")
    assert (replies["bug"].stage, replies["bug"].code) == ("train", "internal")
    assert replies["bug"].reason.startswith("ValueError in ")
    assert isinstance(replies["c"], Failure)
    assert replies["c"].code == "wire"
    assert [store.load(client, before=3).steps for client in "abc"] == [2, 4, 0]  # of failures nothing was saved
    assert all(record.exc_info is not None for record in caplog.records)
    assert "raise ValueError" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_what_becomes_of_clients_is_the_same_with_workers_and_one_that_dies_is_a_failure(store: ClientStore) -> None:
    clients = ["a", "b", "bug", "c", "killed"]
    for name in clients:
        store.save(ClientState(name, 4, adapter=START), 1)
    one = serial(trainer, store, AGREED)("train", 2, clients[:-1], asked)
    two = serial(trainer, store, AGREED, Workers(2))("train", 3, clients, asked_in_round_3)
    replies, parallel = dict(one), dict(two)
    assert list(parallel) == clients
    killed = parallel.pop("killed")
    assert isinstance(killed, Failure)
    assert (killed.stage, killed.code) == ("train", "internal")
    assert killed.reason.startswith("its worker was killed by SIGKILL")
    assert {name: reply for name, reply in parallel.items() if isinstance(reply, Failure)} == {
        name: reply for name, reply in replies.items() if isinstance(reply, Failure)
    }
    assert [store.load(name, before=4).steps for name in clients] == [8, 4, 4, 8, 4]


@pytest.mark.parametrize("number", [1, 2])
def test_an_interruption_is_nobodys_failure(number: int, store: ClientStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(serial(trainer, store, AGREED, Workers(number))("train", 1, ["interrupted"], asked))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("when", ["load", "save"])
def test_an_error_of_the_runs_disk_is_not_the_clients_failure(when: str, number: int, store: ClientStore) -> None:
    store.save(ClientState("a", 1, adapter=START), 1)
    place = store.folder / "a"
    if when == "load":
        (place / "a.000001").write_bytes(b"damaged")
    else:
        place.rename(store.folder / "elsewhere")
        place.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError):
        list(serial(trainer, store, AGREED, Workers(number))("train", 2, ["a"], asked))


class Together:
    """Trainers of clients that train together, two at a time, and what they were asked."""

    def __init__(self, size: int = 2) -> None:
        self.size, self.seen = size, list[list[str]]()

    def train(self, asked: Sequence[tuple[str, LocalSteps]]) -> list[Trained | TrainingError]:
        self.seen.append([client for client, _ in asked])
        if any(client == "heavy" for client, _ in asked):
            raise MemoryError("no room for so many")
        return [
            TrainingError("the loss is nan")
            if client == "b"
            else Trained({name: t + 1 for name, t in steps.start.items()}, (1.0, 3.0))
            for client, steps in asked
        ]

    def __call__(self, client: str) -> LocalTrainer:
        if client == "broken":
            raise ValueError("no data")
        return replace(trainer(client), lot=Lot(self.size, self.train))


def test_clients_train_together_and_are_asked_for_no_more_than_that(store: ClientStore) -> None:
    visited: list[str] = []

    def request(client: str) -> bytes:
        visited.append(client)
        return asked(client)

    lots = Together()
    replies = serial(lots, store, AGREED)("train", 1, ["a", "b", "c"], request)
    for number, (client, reply) in enumerate(replies):
        assert visited == ["a", "b", "c"][: 3 if number == 2 else 2]
        assert client == "abc"[number]
        if client == "b":
            assert reply == Failure("b", "train", "the loss is nan", "training")
            continue
        assert isinstance(reply, bytes)
        assert decode_update(reply, AGREED.up, AGREED.schema, START, 1)[0].loss == 2.0
        assert store.load(client, before=2).adapter["m.A"].tolist() == [[2.0]]
    assert lots.seen == [["a", "b"]]  # c is alone, and trains by itself
    assert store.load("b", before=2).steps == 0


def test_a_client_that_fails_before_it_trains_takes_nobody_along(store: ClientStore) -> None:
    lots = Together(3)

    def damaged(client: str) -> bytes:
        return asked(client)[: -1 if client == "c" else None]

    replies = dict(serial(lots, store, AGREED)("train", 1, ["a", "broken", "c", "d", "e"], damaged))
    failed = {client: reply.code for client, reply in replies.items() if isinstance(reply, Failure)}
    assert failed == {"broken": "internal", "c": "wire"}
    assert lots.seen == [["d", "e"]]
    assert isinstance(replies["a"], bytes)


def test_where_all_fail_together_each_says_why(store: ClientStore) -> None:
    replies = dict(serial(Together(), store, AGREED)("train", 1, ["a", "heavy"], asked))
    for client in ("a", "heavy"):
        assert replies[client].stage == "train"
        assert replies[client].reason.startswith(f"MemoryError in Together.train ({__file__}, line ")
        assert replies[client].reason.endswith("): no room for so many")


def test_a_method_that_trains_twice_does_so_together_twice(store: ClientStore) -> None:
    agreed = Agreement(build(MethodConfig(name="ditto")), CodecConfig(values="fp32"), START)
    state, lots = agreed.method.start(START), Together()
    exchange = serial(lots, ClientStore(store.folder, StateReader(agreed.method, START)), agreed)
    replies = exchange("train", 1, ["a", "c"], lambda client: server.request(state, client, agreed).blob)
    assert all(isinstance(reply, bytes) for _, reply in replies)
    assert lots.seen == [["a", "c"], ["a", "c"]]


def test_every_error_has_a_code_and_every_code_a_sentence() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CapflError)]
    assert {kind.code for kind in kinds} == PUBLIC.keys()
    assert (code_of(VersionError("x")), code_of(KeyError("x"))) == ("version", "internal")
    assert public("no such code") == public("internal")


def test_text_of_others_is_shown_without_control_characters_and_not_at_any_length() -> None:
    assert printable("ä\x1b[2J\r\x00\u202e\nb") == "ä\\x1b[2J\\r\\x00\\u202e\nb"
    assert printable("x" * 30, longest=10) == "xxxxxxxxxx ... (20 more characters)"

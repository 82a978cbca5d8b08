"""A run on disk: equal states are equal bytes, files are whole or old, and a round can be run again."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfl.checkpoint import (
    ClientStore,
    RunFolder,
    client_from_bytes,
    client_to_bytes,
    server_from_bytes,
    server_to_bytes,
    write_atomically,
)
from capfl.errors import CheckpointError
from capfl.types import Adapter, ClientState, Entry, Failure, RoundRecord, ServerState

TEMPLATE = {"m.A": torch.zeros(1, 2), "m.B": torch.zeros(2, 1)}
floats = st.floats(width=32, allow_nan=False)


def adapter(*values: float) -> Adapter:
    return {"m.A": torch.tensor([values[:2]]), "m.B": torch.tensor(values[2:]).reshape(2, 1)}


def equal(a: Adapter, b: Adapter) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


FULL = adapter(1.0, -2.0, 0.1, 3e-9)
HALF = {"m.B": FULL["m.B"]}
SERVER = server_to_bytes(ServerState(3, FULL, FULL, (b"one", b"\x00two"), {"b": 2, "a": 1}))
CLIENT = client_to_bytes(ClientState("a", 5, FULL, 3, FULL, HALF))


# -- states as bytes -------------------------------------------------------------------------------------


parts = st.sets(st.sampled_from("AB"))
numbers = st.lists(floats, min_size=4, max_size=4)


def part_of(values: list[float], kept: set[str]) -> Adapter:
    return {name: t for name, t in adapter(*values).items() if name[-1] in kept}


@given(
    numbers,
    numbers,
    st.integers(0, 10**9),
    st.lists(st.binary(min_size=1, max_size=9), max_size=12),
    st.dictionaries(st.text(max_size=4), st.integers(0, 10**9), max_size=4),
)
def test_a_server_state_comes_back(values, known, round, log, versions):
    state = ServerState(round, adapter(*values), adapter(*known), tuple(log), versions)
    back = server_from_bytes(server_to_bytes(state), TEMPLATE)
    assert (back.round, back.log, back.versions) == (round, tuple(log), versions)
    assert equal(back.adapter, state.adapter)
    assert equal(back.known, state.known)


@given(numbers, st.integers(0, 10**9), st.text(), st.integers(0, 10**9), parts, parts, parts)
def test_a_client_state_comes_back_with_the_factors_that_it_has(values, steps, client, version, own, known, residual):
    tensors = [part_of(values, kept) for kept in (own, known, residual)]
    state = client_from_bytes(
        client_to_bytes(ClientState(client, steps, tensors[0], version, tensors[1], tensors[2])), TEMPLATE
    )
    assert (state.client, state.steps, state.version) == (client, steps, version)
    assert all(map(equal, (state.adapter, state.known, state.residual), tensors))


def test_equal_states_are_equal_bytes():
    for _ in range(20):
        again = {name: t.clone() for name, t in FULL.items()}
        half = {name: t.clone() for name, t in HALF.items()}
        assert server_to_bytes(ServerState(3, again, again, (b"one", b"\x00two"), {"a": 1, "b": 2})) == SERVER
        assert client_to_bytes(ClientState("a", 5, again, 3, again, half)) == CLIENT
    assert server_to_bytes(ServerState(4, FULL)) != server_to_bytes(ServerState(3, FULL))


def test_names_come_back_in_the_templates_order():
    shuffled = dict(reversed(FULL.items()))
    assert list(server_from_bytes(server_to_bytes(ServerState(1, shuffled)), TEMPLATE).adapter) == list(TEMPLATE)


@pytest.mark.parametrize("length", range(len(SERVER)))
def test_a_part_of_a_state_is_refused(length):
    with pytest.raises(CheckpointError, match="damaged"):
        server_from_bytes(SERVER[:length], TEMPLATE)


@given(st.integers(0, len(CLIENT) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_gives_a_state_that_fits(at, flip):
    damaged = bytearray(CLIENT)
    damaged[at] ^= flip
    try:
        state = client_from_bytes(bytes(damaged), TEMPLATE)
    except CheckpointError:
        return
    assert isinstance(state.client, str)
    assert isinstance(state.steps, int)
    assert isinstance(state.version, int)
    groups = (state.adapter, state.known, state.residual)
    tensors = [(n, t) for group in groups for n, t in group.items()]
    assert all(t.shape == TEMPLATE[n].shape and t.dtype == torch.float32 for n, t in tensors)


@given(st.binary(max_size=64))
def test_random_bytes_are_refused(blob):
    for read in (server_from_bytes, client_from_bytes):
        with pytest.raises(CheckpointError):
            read(blob, TEMPLATE)


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(CheckpointError):
        server_from_bytes(CLIENT, TEMPLATE)
    with pytest.raises(CheckpointError):
        client_from_bytes(SERVER, TEMPLATE)


@pytest.mark.parametrize(
    "other", [{"m.A": torch.zeros(1, 2)}, {**TEMPLATE, "m.B": torch.zeros(1, 2)}, {"x.A": torch.zeros(1, 2)}]
)
def test_a_state_of_another_adapter_is_refused(other):
    with pytest.raises(CheckpointError, match="does not fit"):
        server_from_bytes(SERVER, other)


# -- client states by round --------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ClientStore:
    return ClientStore(tmp_path / "clients", TEMPLATE, lambda client: ClientState(client, 0, {}))


def files(store: ClientStore) -> list[str]:
    return sorted(p.name for p in store.folder.iterdir())


def test_a_client_that_was_never_visited_starts_anew(store):
    assert store.load("a", before=9) == ClientState("a")
    assert not store.folder.exists()


def test_the_newest_state_from_before_a_round_counts(store):
    for round, steps in ((2, 20), (5, 50)):
        store.save(ClientState("a", steps), round)
    assert [store.load("a", before=n).steps for n in (1, 2, 3, 5, 6, 99)] == [0, 0, 20, 20, 50, 50]


def test_a_round_that_is_run_again_starts_where_it_started(store):
    store.save(ClientState("a", 10), 1)
    store.save(ClientState("a", 20), 2)
    assert store.load("a", before=2).steps == 10
    store.save(ClientState("a", 21), 2)
    assert store.load("a", before=2).steps == 10
    assert store.load("a", before=3).steps == 21


def test_only_what_a_repetition_needs_is_kept(store):
    for round in (1, 2, 5, 9):
        store.save(ClientState("a", round), round)
        store.save(ClientState("b", round), round)
    assert files(store) == ["a.000005", "a.000009", "b.000005", "b.000009"]
    store.save(ClientState("a", 5), 5)  # going back keeps what comes later, too
    assert files(store) == ["a.000005", "a.000009", "b.000005", "b.000009"]


def test_clients_with_dots_and_numbers_in_their_names_are_kept_apart(store):
    names = ["a", "a.2", "a.000001", "a.b", "2", "a.2.000001"]
    for k, name in enumerate(names):
        store.save(ClientState(name, k + 1), 1)
    for k, name in enumerate(names):
        state = store.load(name, before=2)
        assert (state.client, state.steps) == (name, k + 1)
    assert store.load("b", before=2).steps == 0


def test_clients_are_no_patterns(store):
    store.save(ClientState("ab", 1), 1)
    assert store.load("a*", before=2).steps == 0
    assert store.load("[a]b", before=2).steps == 0


def test_more_rounds_than_the_file_names_have_digits_for(store):
    for round in (999_999, 1_000_000, 1_000_001):
        store.save(ClientState("a", round), round)
    assert store.load("a", before=2_000_000).steps == 1_000_001
    assert store.load("a", before=1_000_001).steps == 1_000_000


def test_files_of_others_are_left_alone(store):
    store.folder.mkdir()
    (store.folder / "a.txt").write_text("a note")
    (store.folder / ".a.000001.77").write_text("half a state")  # of a process that was killed
    store.save(ClientState("a", 1), 1)
    assert store.load("a", before=2).steps == 1
    assert "a.txt" in files(store)


def test_a_damaged_client_state_is_an_error_and_not_a_new_start(store):
    store.save(ClientState("a", 1), 1)
    (store.folder / "a.000001").write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        store.load("a", before=2)


# -- writing -----------------------------------------------------------------------------------------------


def test_writing_makes_folders_and_replaces_files(tmp_path):
    path = tmp_path / "x" / "y" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EIO, "check the folder")],
)
def test_a_write_that_fails_leaves_the_old_content_and_says_what_to_do(tmp_path, monkeypatch, place, number, remedy):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, place, fail)
    with pytest.raises(CheckpointError) as caught:
        write_atomically(path, b"new")
    said = str(caught.value)
    assert f"cannot write {path}: {os.strerror(number)}; {remedy}" in said
    assert "capfl run --resume" in said
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*; check the folder"):
        write_atomically(tmp_path / "file" / "below", b"new")


def test_the_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (order.append(name), real(*a)))
    write_atomically(tmp_path / "file", b"new")
    assert order == ["fsync", "replace"]


# -- run folders -------------------------------------------------------------------------------------------


def record(round: int) -> RoundRecord:
    return RoundRecord(
        round, ("a", "b"), {"a": 0.1, "b": 1e-17}, {"a": 3, "b": 4}, (Failure("c", "decode", "über"),),
        (Entry(round, "a", "down", 7, {"header": 7}), Entry(round, "a", "up", 9, {"header": 4, "values": 5})),
        0.25, 0.5, None,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.forget_after(0)
    return found


def test_commit_keeps_state_and_record(folder):
    assert folder.server(TEMPLATE) is None
    assert folder.rounds() == []
    for round in (1, 2):
        folder.commit(ServerState(round, FULL), record(round))
    assert folder.rounds() == [record(1), record(2)]
    state = folder.server(TEMPLATE)
    assert state.round == 2
    assert equal(state.adapter, FULL)


def test_records_come_before_the_state_that_makes_them_count(folder, monkeypatch):
    folder.commit(ServerState(1, FULL), record(1))

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match=r"state/server: No space left on device; free some space"):
        folder.commit(ServerState(2, FULL), record(2))
    monkeypatch.undo()
    assert folder.server(TEMPLATE).round == 1  # round 2 did not happen,
    assert folder.rounds() == [record(1), record(2)]  # although there is a record,
    folder.forget_after(1)  # which resuming drops
    assert folder.rounds() == [record(1)]


def test_a_record_that_cannot_be_written_is_an_error_that_names_the_file(folder, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"rounds.jsonl: No space left on device; free some space"):
        folder.commit(ServerState(1, FULL), record(1))
    monkeypatch.undo()
    assert folder.server(TEMPLATE) is None


def test_forgetting_keeps_the_bytes_of_what_stays(folder):
    for round in (1, 2, 3):
        folder.commit(ServerState(round, FULL), record(round))
    lines = (folder.path / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    folder.forget_after(2)
    assert (folder.path / "rounds.jsonl").read_bytes() == b"".join(lines[:2])
    folder.forget_after(5)
    assert (folder.path / "rounds.jsonl").read_bytes() == b"".join(lines[:2])
    folder.forget_after(0)
    assert (folder.path / "rounds.jsonl").read_bytes() == b""


LINE = (json.dumps(dataclasses.asdict(record(2))) + "\n").encode()


@pytest.mark.parametrize("length", [1, 2, len(LINE) // 2, len(LINE) - 2, len(LINE) - 1, len(LINE)])
def test_a_torn_last_line_is_no_record(folder, length):
    folder.commit(ServerState(1, FULL), record(1))
    with open(folder.path / "rounds.jsonl", "ab") as file:
        file.write(LINE[:length])
    whole = length >= len(LINE) - 1
    assert folder.rounds() == [record(1), record(2)][: 1 + whole]
    folder.forget_after(1)  # what a resumed run does first
    folder.commit(ServerState(2, FULL), record(2))
    assert folder.rounds() == [record(1), record(2)]


def test_json_files(folder):
    folder.write_json("x.json", {"a": [1, "ü"]})
    assert folder.read_json("x.json") == {"a": [1, "ü"]}
    with pytest.raises(CheckpointError, match=r"cannot read .*gone.json.*is .* a run folder\?"):
        folder.read_json("gone.json")
    (folder.path / "bad.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*bad.json"):
        folder.read_json("bad.json")


# -- nothing is written twice ------------------------------------------------------------------------------------


def test_what_clients_know_of_the_adapter_is_written_once():
    adapter = {"m.A": torch.randn(2, 300), "m.B": torch.randn(300, 2)}
    apart = {name: t + 1 for name, t in adapter.items()}
    once, twice = (server_to_bytes(ServerState(1, adapter, known)) for known in (adapter, apart))
    assert len(twice) - len(once) > 4 * 1200
    for blob, known in ((once, adapter), (twice, apart)):
        back = server_from_bytes(blob, adapter)
        assert list(back.known) == list(known)
        assert all(torch.equal(back.known[name], t) for name, t in known.items())
        assert server_to_bytes(back) == blob


def test_zeros_of_either_sign_are_not_the_same():
    known = {name: -t for name, t in TEMPLATE.items()}
    back = server_from_bytes(server_to_bytes(ServerState(1, TEMPLATE, known)), TEMPLATE)
    assert torch.signbit(back.known["m.A"]).all()
    assert not torch.signbit(back.adapter["m.A"]).any()


def test_a_state_that_lacks_what_clients_know_is_damaged():
    blob = server_to_bytes(ServerState(1, TEMPLATE, TEMPLATE))
    assert blob.count(b'\\"m.B\\"]') == 1
    with pytest.raises(CheckpointError, match=r"it has no 'm\.C', which clients know"):
        server_from_bytes(blob.replace(b'\\"m.B\\"]', b'\\"m.C\\"]'), TEMPLATE)

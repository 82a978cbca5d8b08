"""The states of clients on disk: which one counts, which are kept, and that damage is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from capfl.checkpoint import ClientStore, StateReader
from capfl.config.schema import MethodConfig
from capfl.errors import CheckpointError
from capfl.methods import build
from capfl.packing import pack
from capfl.types import Adapter, ClientState
from capfl.vault import MAGIC, Vault

START: Adapter = {"m.A": torch.tensor([[1.0, -2.0]]), "m.B": torch.tensor([[0.1], [3e-9]])}
READER = StateReader(build(MethodConfig(name="fedit")), START)


@pytest.fixture
def store(tmp_path: Path) -> ClientStore:
    return ClientStore(tmp_path / "clients", READER)


def files(store: ClientStore) -> list[str]:
    return sorted(p.name for p in store.folder.glob("*/*"))


def test_the_newest_state_from_before_a_round_counts(store: ClientStore) -> None:
    assert store.load("a", before=9) == ClientState("a")
    assert not store.folder.exists()
    for round in (2, 5):
        store.save(ClientState("a", steps=round), round)
    assert [store.load("a", before=n).steps for n in (1, 2, 3, 5, 6, 99)] == [0, 0, 2, 2, 5, 5]
    store.save(ClientState("a", steps=6), 5)  # the round is run again
    assert [store.load("a", before=n).steps for n in (5, 6)] == [2, 6]


def test_only_what_a_repetition_needs_is_kept(store: ClientStore) -> None:
    for round in (1, 2, 5, 9):
        store.save(ClientState("a", steps=round), round)
    assert files(store) == ["a.000005", "a.000009"]
    store.save(ClientState("a", steps=5), 5)  # going back keeps what comes later, too
    assert files(store) == ["a.000005", "a.000009"]
    store.save(ClientState("a", steps=10), 1_000_000)  # more digits than the names have
    assert store.load("a", before=2_000_000).steps == 10


def test_names_that_look_like_others_are_kept_apart(store: ClientStore) -> None:
    names = ["a", "a.2", "a.000001", "a.b", "2", "all", "ab"]
    for k, name in enumerate(names):
        store.save(ClientState(name, steps=k + 1), 1)
    (store.folder / "a" / ".a.000001.77").write_text("half a state of a process that was killed")
    assert [store.load(name, before=2).steps for name in names] == list(range(1, len(names) + 1))
    assert [store.load(name, before=2).steps for name in ("b", "a*", "[a]b")] == [0, 0, 0]


def test_what_the_server_never_used_is_forgotten(store: ClientStore) -> None:
    store.save(ClientState("a", steps=2, trained=1), 1)
    store.save(ClientState("a", steps=4, trained=2), 2)
    store.forget("a", after=2)
    assert store.load("a", before=9).steps == 4
    store.forget("a", after=1)
    assert store.load("a", before=9).steps == 2
    store.save(ClientState("a", steps=2, trained=1, version=3), 3)  # a validation: nothing was learnt
    store.forget("a", after=1)
    assert store.load("a", before=9).version == 3


def test_locked_states_are_read_with_the_key(tmp_path: Path) -> None:
    """Loaded as well as forgotten."""
    pytest.importorskip("cryptography")
    store = ClientStore(tmp_path, READER, Vault(b"k" * 32))
    store.save(ClientState("a", steps=2, trained=1, residual=START), 1)
    store.save(ClientState("a", steps=4, trained=2), 2)
    assert all(path.read_bytes().startswith(MAGIC) for path in tmp_path.glob("a/*"))
    store.forget("a", after=1)
    assert store.load("a", before=9).steps == 2
    for vault, said in ((Vault(b"x" * 32), "cannot be opened"), (Vault(), "is encrypted")):
        with pytest.raises(CheckpointError, match=rf"a\.000001 {said}"):
            ClientStore(tmp_path, READER, vault).forget("a", after=0)


def test_a_damaged_client_state_is_an_error_and_no_new_start(store: ClientStore) -> None:
    store.save(ClientState("a", steps=1, residual=START), 1)
    path = store.folder / "a" / "a.000001"
    blob = path.read_bytes()
    for damaged in (b"", blob[:-1], blob[:40] + bytes([blob[40] ^ 1]) + blob[41:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a/a\.000001: the file is damaged.*; restore it .* or delete it"):
            store.load("a", before=2)
    path.write_bytes(pack(ClientState("b")))
    with pytest.raises(CheckpointError, match=r"a\.000001 is the state of client 'b'; restore 'a''s own"):
        store.load("a", before=2)

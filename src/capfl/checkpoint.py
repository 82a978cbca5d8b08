"""A run on disk. Every file appears whole or not at all, and a killed run goes on to the same bits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capfl import adapter as algebra
from capfl.errors import CheckpointError
from capfl.files import naming, write_atomically
from capfl.methods import Method
from capfl.packing import pack, unpack
from capfl.types import Adapter, ClientId, ClientState, Entry, Failure, RoundRecord, ServerState
from capfl.vault import Vault


@dataclass(frozen=True)
class StateReader:
    """Reads states of one method, whose tensors are those of ``template`` or a patch of it."""

    method: Method
    template: Adapter

    def server(self, blob: bytes) -> ServerState:
        """Raises CheckpointError: damaged, or made for another method or adapter."""
        parts = self.method.grouping, self.method.ranks
        state = unpack(ServerState, blob, {"grouping": parts[0].server_state, "ranks": parts[1].server_state})
        for group in state.groups.values():
            self._check(group.adapter, group.known)
        if unknown := sorted(set(state.group_of.values()) - state.groups.keys()):
            raise CheckpointError(f"the state has clients in a group {unknown[0]!r} that is not there")
        return state

    def client(self, blob: bytes) -> ClientState:
        """Raises CheckpointError: as ``server``."""
        parts = self.method.grouping, self.method.ranks
        state = unpack(ClientState, blob, {"grouping": parts[0].client_state, "ranks": parts[1].client_state})
        self._check(state.known, state.adapter, state.residual, state.best)
        return state

    def _check(self, *adapters: Adapter) -> None:
        whole = self.template | algebra.blank(self.template)
        for name, t in (pair for adapter in adapters for pair in adapter.items()):
            expected = whole.get(name)
            if expected is None or expected.shape != t.shape or expected.dtype != t.dtype:
                raise CheckpointError(f"the state has a tensor {name!r} of shape {tuple(t.shape)} that does not fit")


class ClientStore:
    """Client states by round: ``CLIENT/CLIENT.ROUND``. A round that is run again starts from the state before it."""

    def __init__(self, folder: Path, reader: StateReader, vault: Vault | None = None) -> None:
        self.folder = folder
        self._reader = reader
        self._vault = vault or Vault()

    def load(self, client: ClientId, before: int) -> ClientState:
        """The newest state from a round before this one, or the initial state.

        Raises:
            CheckpointError: the file is damaged, made for another method, or not to be opened; names it.
        """
        earlier = [n for n in self._rounds(client) if n < before]
        return self._read(client, max(earlier)) if earlier else ClientState(client)

    def save(self, state: ClientState, round: int) -> None:
        """Keep a state, and of the earlier ones only the newest, which a repetition of this round would need."""
        path = self._path(state.client, round)
        write_atomically(path, self._vault.lock(pack(state), path))
        for n in sorted(n for n in self._rounds(state.client) if n < round)[:-1]:
            self._path(state.client, n).unlink()

    def forget(self, client: ClientId, after: int) -> None:
        """Drop the states of training after this round: the server never used what came of it.

        Raises:
            CheckpointError: as ``load``.
        """
        for n in [n for n in self._rounds(client) if n > after]:
            if self._read(client, n).trained > after:
                self._path(client, n).unlink()

    def _read(self, client: ClientId, round: int) -> ClientState:
        path = self._path(client, round)
        blob = self._vault.unlock(path.read_bytes(), path)
        try:
            state = self._reader.client(blob)
        except CheckpointError as error:
            raise CheckpointError(
                f"{path}: {error}; restore it from a copy, or delete it: the client then begins again"
            ) from error
        if state.client != client:
            raise CheckpointError(f"{path} is the state of client {state.client!r}; restore {client!r}'s own")
        return state

    def _path(self, client: ClientId, round: int) -> Path:
        return self.folder / client / f"{client}.{round:06d}"

    def _rounds(self, client: ClientId) -> list[int]:
        folder = self.folder / client
        if not folder.is_dir():
            return []
        names = (path.name.rpartition(".") for path in folder.iterdir())
        return sorted(int(number) for name, _, number in names if name == client and number.isdigit())


class RunFolder:
    """The files of one run. ``state/server`` is the commit point: what it does not know did not happen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_json(self, name: str, value: object) -> None:
        write_atomically(self.path / name, (json.dumps(value, indent=1) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises CheckpointError: there is no such file, or it holds no JSON object."""
        try:
            value = json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {self.path / name}: {error}; is {self.path} a run folder?") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path / name} is damaged: it holds no JSON object; restore it from a copy")
        return value

    def clients(self, reader: StateReader, vault: Vault | None = None) -> ClientStore:
        return ClientStore(self.path / "state" / "clients", reader, vault)

    def commit(self, state: ServerState, record: RoundRecord) -> ServerState:
        """Append the record, then replace the server's state. Returns the state as it was written."""
        line = _line(record)
        state = replace(state, lines=(_chained(state.lines[-1] if state.lines else "", line),))
        with naming(self._records):
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self._records, "a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self._write_state(state)
        return state

    def amend(self, before: ServerState, after: ServerState, record: RoundRecord) -> ServerState:
        """Replace the record of the last committed round, then the server's state, by what has been added to them.

        Between the two, what clients have been sent is forgotten: they are sent it again, and it is charged again.
        """
        lines = [*self._lines()[:-1], _line(record)]
        amended = _chain(lines)
        self._write_state(replace(before, lines=(*before.lines, amended)))  # whichever record is there fits
        write_atomically(self._records, "".join(lines).encode())
        after = replace(after, lines=(amended,))
        self._write_state(after)
        return after

    def resumed(self, reader: StateReader) -> ServerState | None:
        """As ``state``, to go on with: what was written of a round that did not happen is dropped."""
        state = self.state(reader)
        kept = "".join(self._lines()[: state.round if state else 0])
        if self._records.is_file() and kept != self._text():
            write_atomically(self._records, kept.encode())
        return state

    def state(self, reader: StateReader) -> ServerState | None:
        """The server's state after the last committed round, or None before the first. Nothing is written.

        Raises:
            CheckpointError: the state is damaged, or the records are not those that were written with it.
        """
        path, lines = self.path / "state" / "server", self._lines()
        if not path.is_file():
            if len(lines) > 1:  # the first is on disk before there is a state
                raise CheckpointError(f"{path} is not there; restore it from a copy, or start a new run")
            return None
        try:
            state = reader.server(path.read_bytes())
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}; restore it from a copy, or start a new run") from error
        try:
            found = _chain(lines[: state.round])
        except (ValueError, TypeError, AttributeError):
            found = "no record"
        if found not in state.lines:
            raise CheckpointError(
                f"{self._records} is not what this run wrote: lines are missing, doubled or changed; "
                "restore it from a copy"
            )
        return replace(state, lines=(found,))

    def rounds(self, after: int = 0) -> list[RoundRecord]:
        """All complete records of the rounds after one; a line that was cut off by a crash is not one.

        Raises:
            CheckpointError: a line is no record; names it.
        """
        records = []
        for n, line in enumerate(self._lines()[after:], after + 1):
            try:
                records.append(_record(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise CheckpointError(
                    f"{self._records}, line {n}, is no record of a round ({error}); restore the file from a copy"
                ) from error
        return records

    @property
    def _records(self) -> Path:
        return self.path / "rounds.jsonl"

    def _lines(self) -> list[str]:
        return [line for line in self._text().splitlines(keepends=True) if line.endswith("\n")]

    def _text(self) -> str:
        """All of rounds.jsonl. A byte that is no text is damage, which the digests show."""
        return self._records.read_text(encoding="utf-8", errors="replace") if self._records.is_file() else ""

    def _write_state(self, state: ServerState) -> None:
        write_atomically(self.path / "state" / "server", pack(state))


def _line(record: RoundRecord) -> str:
    return json.dumps(dataclasses.asdict(record)) + "\n"


def _record(row: dict[str, Any]) -> RoundRecord:
    row["clients"] = tuple(row["clients"])
    row["failures"] = tuple(Failure(**failure) for failure in row["failures"])
    row["ledger"] = tuple(Entry(**entry) for entry in row["ledger"])
    return RoundRecord(**row)


def _chain(lines: Iterable[str]) -> str:
    digest = ""
    for line in lines:
        digest = _chained(digest, line)
    return digest


def _chained(before: str, line: str) -> str:
    """A digest of a record and of all before it. The time that a round took is not in it: equal runs have equal states.

    Raises:
        ValueError, TypeError, AttributeError: the line is no record.
    """
    row = json.loads(line)
    row.pop("seconds", None)
    return hashlib.blake2b(f"{before}{json.dumps(row)}".encode(), digest_size=16).hexdigest()

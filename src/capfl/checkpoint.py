"""A run on disk. Every file appears whole or not at all, and a killed run goes on to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from capfl import adapter as algebra
from capfl.errors import CheckpointError
from capfl.files import json_text, read_json, write_atomically
from capfl.history import History, chained, line_of
from capfl.interruption import unbroken
from capfl.methods import Method
from capfl.packing import DIGEST, pack, unpack
from capfl.types import Adapter, ClientId, ClientState, Group, RoundRecord, ServerState
from capfl.vault import Vault


@dataclass(frozen=True)
class StateReader:
    """Reads states of one method, whose tensors are those of ``template`` or a patch of it."""

    method: Method
    template: Adapter

    @property
    def of_server(self) -> dict[str, type | None]:
        """What the parts of the method keep at the server."""
        return {"grouping": self.method.grouping.server_state, "ranks": self.method.ranks.server_state}

    def checked(self, state: ServerState) -> ServerState:
        """Raises CheckpointError: made for another adapter."""
        for group in state.groups.values():
            self._check(group.adapter, group.known)
        if unknown := sorted(set(state.group_of.values()) - state.groups.keys()):
            raise CheckpointError(f"the state has clients in a group {unknown[0]!r} that is not there")
        return state

    def client(self, blob: bytes) -> ClientState:
        """Raises CheckpointError: damaged, or made for another method or adapter."""
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
                f"{path}: {error}; restore it from a copy, or delete it and the client starts anew"
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


@dataclass(frozen=True)
class _Content:
    """What a file in ``state/groups`` has of a group."""

    adapter: Adapter
    known: Adapter
    log: tuple[bytes, ...]


@dataclass(frozen=True)
class _Reference:
    """What ``state/server`` has of a group in place of that."""

    file: str
    idle: int
    since: int


@dataclass(frozen=True)
class _Stored:
    state: ServerState  # without its groups
    groups: Mapping[str, _Reference]


class ServerStore:
    """The server's state: a file ``server``, and in ``groups`` a file for each adapter that groups have.

    These files are named after the digest of their content and written once: a group in which nobody has trained costs
    a line of ``server``, and groups that begin with the adapter of everybody share its file until they train.
    ``server`` is replaced when all that it names is there, and what it no longer names is removed after that.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._folder = folder / "server", folder / "groups"
        self._written: dict[tuple[int, ...], tuple[Group, str]] = {}  # by the objects that are in the files

    def write(self, state: ServerState) -> None:
        """Raises CheckpointError: it cannot be written."""
        written: dict[tuple[int, ...], tuple[Group, str]] = {}
        groups = {}
        for name, group in state.groups.items():
            key = _objects(group)
            _, file = written.get(key) or self._written.get(key) or (group, "")
            if not file:
                blob = pack(_Content(group.adapter, group.known, group.log))
                file = blob[-DIGEST:].hex()
                write_atomically(self._folder / file, blob)
            written[key] = group, file
            groups[name] = _Reference(file, group.idle, group.since)
        write_atomically(self.path, pack(_Stored(replace(state, groups={}), groups)))
        before, self._written = self._written, written
        for file in {file for _, file in before.values()} - {file for _, file in written.values()}:
            (self._folder / file).unlink(missing_ok=True)

    def read(self, reader: StateReader) -> ServerState:
        """Raises CheckpointError: a file is missing or damaged, or made for another method or adapter; names it."""
        path, contents = self.path, dict[str, _Content]()
        try:
            stored = unpack(_Stored, path.read_bytes(), reader.of_server)
            for one in stored.groups.values():
                path = self._folder / one.file
                if one.file not in contents:
                    contents[one.file] = _content(path)
            groups = {name: _group(contents[one.file], one) for name, one in stored.groups.items()}
            path = self.path
            state = reader.checked(replace(stored.state, groups=groups))
        except (CheckpointError, OSError) as error:
            said = "it is not there" if isinstance(error, FileNotFoundError) else error
            raise CheckpointError(f"{path}: {said}; restore it from a copy, or start a new run") from error
        self._written = {_objects(groups[name]): (groups[name], one.file) for name, one in stored.groups.items()}
        return state

    def sweep(self) -> None:
        """Remove what a process has left that was killed, beside what ``read`` has read."""
        named = {file for _, file in self._written.values()}
        for path in self._folder.glob("*"):
            if path.name not in named:
                path.unlink()


def _objects(group: Group) -> tuple[int, ...]:
    return id(group.adapter), id(group.known), id(group.log)


def _content(path: Path) -> _Content:
    blob = path.read_bytes()
    if blob[-DIGEST:].hex() != path.name:
        raise CheckpointError("the file is damaged: its digest is not its name")
    return unpack(_Content, blob)


def _group(content: _Content, reference: _Reference) -> Group:
    return Group(content.adapter, content.known, content.log, reference.idle, reference.since)


class RunFolder:
    """The files of one run. ``state/server`` is the commit point: what it does not know did not happen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server = ServerStore(path / "state")
        self.history = History(path / "rounds.jsonl")

    def write_json(self, name: str, value: object) -> None:
        """``value`` may have iterators in the place of lists. Raises CheckpointError: it cannot be written."""
        write_atomically(self.path / name, (piece.encode() for piece in chain(json_text(value), ["\n"])))

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises CheckpointError: there is no such file, or it holds no JSON object."""
        return read_json(self.path / name)

    def clients(self, reader: StateReader, vault: Vault) -> ClientStore:
        return ClientStore(self.path / "state" / "clients", reader, vault)

    def commit(self, state: ServerState, record: RoundRecord) -> ServerState:
        """Append the record, then replace the server's state. Returns the state as it was written."""
        line = line_of(record)
        state = replace(state, lines=(_next(state, line),))
        with unbroken():
            self.history.append(line)
            self._server.write(state)
        return state

    def amend(self, before: ServerState, after: ServerState, record: RoundRecord) -> ServerState:
        """Add to the record of the last committed round, then to the server's state.

        Between the two, what clients have been sent is forgotten: they are sent it again, and it is charged again.
        """
        line = line_of(record)
        amended = _next(before, line)
        after = replace(after, lines=(amended,))
        with unbroken():
            self._server.write(replace(before, lines=(*before.lines, amended)))  # with the line or without it fits
            self.history.append(line)
            self._server.write(after)
        return after

    def resumed(self, reader: StateReader) -> ServerState | None:
        """As ``state``, to continue with: what was written of a round that did not happen is dropped."""
        state, length = self._checked(reader)
        self.history.cut(length)
        self._server.sweep()
        return state

    def state(self, reader: StateReader) -> ServerState | None:
        """The server's state after the last committed round, or None before the first. Nothing is written.

        Raises:
            CheckpointError: the state is damaged, or the records are not those that were written with it.
        """
        return self._checked(reader)[0]

    def rounds(self) -> list[RoundRecord]:
        """The records of all rounds. Raises CheckpointError: a line is no record; names it."""
        return self.history.read()[0]

    def _checked(self, reader: StateReader) -> tuple[ServerState | None, int]:
        """The state, and how many bytes of the records belong to it."""
        path = self._server.path
        if not path.is_file():
            if len(list(islice(self.history.lines(), 2))) > 1:  # the first is on disk before there is a state
                raise CheckpointError(f"{path} is not there; restore it from a copy, or start a new run")
            return None, 0
        state = self._server.read(reader)
        try:
            found, length = self.history.digest(state.round)
        except (ValueError, TypeError, AttributeError):
            found, length = "no record", 0
        if found not in state.lines:
            raise CheckpointError(
                f"{self.history.path} was changed: lines are missing, doubled or different; restore it from a copy"
            )
        return replace(state, lines=(found,)), length


def _next(state: ServerState, line: str) -> str:
    """The digest of the records once there is one more line."""
    return chained(state.lines[-1] if state.lines else "", line)

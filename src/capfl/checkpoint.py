"""A run on disk. Every file appears whole or not at all, and a killed run goes on to the same bits."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from capfl import adapter as algebra
from capfl.errors import CheckpointError
from capfl.files import naming, write_atomically
from capfl.types import Adapter, ClientId, ClientState, Entry, Failure, RoundRecord, ServerState
from capfl.vault import Vault


def server_to_bytes(state: ServerState) -> bytes:
    log = {str(n): _bytes(body) for n, body in enumerate(state.log)}
    groups = {name: _bytes(server_to_bytes(group)) for name, group in sorted(state.groups.items())}
    adapter, known = state.adapter, state.known
    own = {name: t for name, t in known.items() if not _same_bits(t, adapter.get(name))}  # none is written twice
    scalars = {
        "round": state.round,
        "known": list(known),
        "versions": dict(sorted(state.versions.items())),
        "group_of": dict(sorted(state.group_of.items())),
    }
    tensors = {"adapter": adapter, "known": own, "log": log, "groups": groups, "notes": state.notes}
    return _pack(tensors, scalars)


def server_from_bytes(blob: bytes, template: Adapter) -> ServerState:
    """The state that ``server_to_bytes`` wrote.

    Raises:
        CheckpointError: it is damaged, or made for another adapter.
    """
    tensors, (round, known, versions, group_of) = _unpack(blob, round=int, known=list, versions=dict, group_of=dict)
    log, inner, notes = tensors.pop("log", {}), tensors.pop("groups", {}), tensors.pop("notes", {})
    fitting = _fitting(tensors, template)
    if set(log) != {str(n) for n in range(len(log))}:
        raise CheckpointError(f"saved state is damaged: its log has {', '.join(sorted(log))}")
    bodies = [log[str(n)].numpy().tobytes() for n in range(len(log))]
    if unknown := set(group_of.values()) - inner.keys():
        raise CheckpointError(f"saved state is damaged: it has clients in a group {min(unknown)!r} that is not there")
    groups = {name: server_from_bytes(t.numpy().tobytes(), template) for name, t in sorted(inner.items())}
    adapter = fitting("adapter")
    own = adapter | fitting("known")
    if missing := sorted(set(known) - own.keys()):
        raise CheckpointError(f"saved state is damaged: it has no {missing[0]!r}, which clients know")
    whole = {name: own[name] for name in known}
    return ServerState(round, adapter, whole, tuple(bodies), versions, groups, group_of, notes)


def client_to_bytes(state: ClientState) -> bytes:
    tensors = {
        "adapter": state.adapter, "known": state.known, "residual": state.residual, "notes": state.notes
    }  # fmt: skip
    scalars = {"client": state.client, "steps": state.steps, "version": state.version, "trained": state.trained}
    return _pack(tensors, scalars)


def client_from_bytes(blob: bytes, template: Adapter) -> ClientState:
    """The state that ``client_to_bytes`` wrote. Raises as ``server_from_bytes``."""
    tensors, (client, steps, version, trained) = _unpack(blob, client=str, steps=int, version=int, trained=int)
    notes = tensors.pop("notes", {})
    fitting = _fitting(tensors, template)
    return ClientState(
        client, steps, fitting("adapter"), version, fitting("known"), fitting("residual"), notes, trained
    )


def _pack(groups: Mapping[str, Adapter], scalars: dict[str, Any]) -> bytes:
    # clones, because a tensor may stand in two groups and safetensors writes no memory twice
    tensors = {f"{group}/{name}": t.clone() for group, named in groups.items() for name, t in named.items()}
    # one key, because safetensors writes several in random order, and equal states must be equal bytes
    return save(tensors, metadata={"state": json.dumps(scalars)})


def _same_bits(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    return b is not None and torch.equal(a.view(torch.int32), b.view(torch.int32))


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpack(blob: bytes, **kinds: type) -> tuple[dict[str, Adapter], list[Any]]:
    """Tensors by group, and the scalars of the given names and types."""
    try:
        tensors = load(blob)
        length = int.from_bytes(blob[:8], "little")
        scalars = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["state"])
        values = [scalars[name] for name in kinds]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"saved state is damaged: {error}") from error
    if not all(isinstance(value, kind) for value, kind in zip(values, kinds.values(), strict=True)):
        raise CheckpointError(f"saved state is damaged: {', '.join(kinds)} are {values}")
    groups: dict[str, Adapter] = {}
    for key, t in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = t
    return groups, values


def _fitting(groups: dict[str, Adapter], template: Adapter) -> Callable[[str], Adapter]:
    """Gives each group in the template's order, after all of them have been checked against it, and a patch of it."""
    whole = template | algebra.blank(algebra.shapes(template))
    for named in groups.values():
        for name, t in named.items():
            expected = whole.get(name)
            if expected is None or expected.shape != t.shape or expected.dtype != t.dtype:
                raise CheckpointError(f"saved state has a tensor {name!r} of shape {tuple(t.shape)} that does not fit")
    return lambda group: {name: groups[group][name] for name in whole if name in groups.get(group, {})}


class ClientStore:
    """Client states by round: ``CLIENT.ROUND``. A round that is run again starts from the state before it."""

    def __init__(
        self, folder: Path, template: Adapter, init: Callable[[ClientId], ClientState], vault: Vault | None = None
    ) -> None:
        self.folder = folder
        self._template = template
        self._init = init
        self._vault = vault or Vault()

    def load(self, client: ClientId, before: int) -> ClientState:
        """The newest state from a round before this one, or the initial state.

        Raises:
            CheckpointError: the file is damaged, made for another adapter, or not to be opened; names it.
        """
        earlier = [n for n in self._rounds(client) if n < before]
        if not earlier:
            return self._init(client)
        path = self._path(client, max(earlier))
        blob = self._vault.unlock(path.read_bytes(), path)
        try:
            return client_from_bytes(blob, self._template)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def save(self, state: ClientState, round: int) -> None:
        """Keep a state, and of the earlier ones only the newest, which a repetition of this round would need."""
        path = self._path(state.client, round)
        write_atomically(path, self._vault.lock(client_to_bytes(state), path))
        for n in sorted(n for n in self._rounds(state.client) if n < round)[:-1]:
            self._path(state.client, n).unlink()

    def forget(self, client: ClientId, after: int) -> None:
        """Drop the states of training after this round: the server never used what came of it."""
        for n in sorted(n for n in self._rounds(client) if n > after):
            path = self._path(client, n)
            if client_from_bytes(path.read_bytes(), self._template).trained > after:
                path.unlink()

    def _path(self, client: ClientId, round: int) -> Path:
        return self.folder / f"{client}.{round:06d}"

    def _rounds(self, client: ClientId) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = (p.name.rpartition(".") for p in self.folder.glob(f"{client}.*"))
        return [int(number) for name, _, number in names if name == client and number.isdigit()]


class RunFolder:
    """The files of one run. ``state/server`` is the commit point: what it does not know did not happen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_json(self, name: str, value: object) -> None:
        write_atomically(self.path / name, (json.dumps(value, indent=1) + "\n").encode())

    def read_json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {self.path / name}: {error}; is {self.path} a run folder?") from error

    def clients(
        self, template: Adapter, init: Callable[[ClientId], ClientState], vault: Vault | None = None
    ) -> ClientStore:
        return ClientStore(self.path / "state" / "clients", template, init, vault)

    def commit(self, state: ServerState, record: RoundRecord) -> None:
        """Append the record, then replace the server's state."""
        line = json.dumps(dataclasses.asdict(record)) + "\n"
        with naming(self.path / "rounds.jsonl"), open(self.path / "rounds.jsonl", "a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        write_atomically(self.path / "state" / "server", server_to_bytes(state))

    def amend(self, state: ServerState, record: RoundRecord) -> None:
        """Replace the record of the last committed round, then the server's state, by what has been added to them.

        Between the two, what clients have been told is forgotten: they are told again, and it is charged again.
        """
        self._write([*(r for r in self.rounds() if r.round < record.round), record])
        write_atomically(self.path / "state" / "server", server_to_bytes(state))

    def server(self, template: Adapter) -> ServerState | None:
        """The state after the last committed round, or None before the first."""
        path = self.path / "state" / "server"
        return server_from_bytes(path.read_bytes(), template) if path.is_file() else None

    def rounds(self) -> list[RoundRecord]:
        """All complete records; a line that was cut off by a crash is not one."""
        path = self.path / "rounds.jsonl"
        records: list[RoundRecord] = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            try:
                records.append(_record(json.loads(line)))
            except ValueError:
                break
        return records

    def forget_after(self, round: int) -> None:
        """Drop the records of rounds that were never committed."""
        self._write([record for record in self.rounds() if record.round <= round])

    def _write(self, records: Sequence[RoundRecord]) -> None:
        text = "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in records)
        write_atomically(self.path / "rounds.jsonl", text.encode())


def _record(row: dict[str, Any]) -> RoundRecord:
    row["clients"] = tuple(row["clients"])
    row["failures"] = tuple(Failure(**failure) for failure in row["failures"])
    row["ledger"] = tuple(Entry(**entry) for entry in row["ledger"])
    return RoundRecord(**row)

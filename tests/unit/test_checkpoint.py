"""A run on disk: files are whole or old, damage is an error that names the file, and a round can be run again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from capfl import checkpoint
from capfl.checkpoint import RunFolder, StateReader
from capfl.config.schema import MethodConfig
from capfl.errors import CheckpointError
from capfl.files import write_atomically
from capfl.history import line_of
from capfl.methods import build
from capfl.packing import pack
from capfl.types import EVERYBODY, Adapter, ClientState, Entry, Failure, Group, RoundRecord, ServerState
from support import Killed, killing, unpacked

START: Adapter = {"m.A": torch.tensor([[1.0, -2.0]]), "m.B": torch.tensor([[0.1], [3e-9]])}
READER = StateReader(build(MethodConfig(name="fedit")), START)


def state(round: int) -> ServerState:
    moved = {name: t + round for name, t in START.items()}
    group = Group(moved, moved, (b"one", b"\x00two"))
    said: dict[str, dict[str, int]] = {"versions": {"b": round, "a": 0}, "own": {"b": round + 1}, "heard": {"b": round}}
    return ServerState(round, {EVERYBODY: group}, version=2 * round, **said)  # type: ignore[arg-type]


def record(round: int) -> RoundRecord:
    return RoundRecord(
        round, ("a", "b"), {"a": 0.1, "b": 1e-17}, {"a": 3, "b": 4}, (Failure("c", "decode", "über", "wire"),),
        (Entry(round, "a", "down", 7, {"header": 7}), Entry(round, "a", "up", 9, {"header": 4, "values": 5})),
        0.25, norms={"a": 1.0}, ranks={"a": [1, 2]}, kappa={"a": [0.5]}, groups={"a": "group-1"}, epsilon=3.5,
    )  # fmt: skip


# -- states fit their run ------------------------------------------------------------------------------------


def test_a_state_of_another_adapter_or_method_is_refused() -> None:
    for wrong in ({"m.A": torch.zeros(1, 3)}, {"m.A": START["m.A"].double()}, {"x.A": torch.zeros(1, 2)}):
        with pytest.raises(CheckpointError, match="that does not fit"):
            READER.client(pack(ClientState("a", known=wrong)))
        with pytest.raises(CheckpointError, match="that does not fit"):
            unpacked(pack(ServerState(1, {EVERYBODY: Group(wrong, {})})), READER)
    assert READER.client(pack(ClientState("a", known={"m.W": torch.zeros(2, 2)}))).known  # a patch of the base
    other = StateReader(build(MethodConfig(name="ca-pfl")), START)
    blob = pack(other.method.start(START))
    assert unpacked(blob, other).ranks is not None
    with pytest.raises(CheckpointError, match="holds no ServerState"):
        unpacked(blob, READER)
    with pytest.raises(CheckpointError, match="clients in a group 'group-1' that is not there"):
        unpacked(pack(replace(state(1), group_of={"a": "group-1"})), READER)


# -- run folders: a round happened when the server's state says so ----------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def three(folder: RunFolder) -> RunFolder:
    return committed(folder)


def committed(folder: RunFolder, **changes: object) -> RunFolder:
    """Three rounds."""
    lines: tuple[str, ...] = ()
    for round in (1, 2, 3):
        lines = folder.commit(replace(state(round), lines=lines), replace(record(round), **changes)).lines  # type: ignore[arg-type]
    return folder


def test_commit_keeps_state_and_record(three: RunFolder) -> None:
    assert three.rounds() == [record(1), record(2), record(3)]
    back = three.resumed(READER)
    assert back is not None
    assert pack(replace(back, lines=())) == pack(state(3))


def test_equal_runs_have_equal_states_however_long_they_took(three: RunFolder, tmp_path: Path) -> None:
    slow = committed(RunFolder(tmp_path / "slow"), seconds=9.0)
    assert (slow.path / "state/server").read_bytes() == (three.path / "state/server").read_bytes()


def test_a_folder_before_its_first_round(folder: RunFolder) -> None:
    assert folder.resumed(READER) is None
    assert folder.rounds() == []


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("state/server", lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:], r"state/server: the file is damaged"),
        ("state/server", lambda b: b"", r"state/server: the file is damaged"),
        ("state/server", lambda b: None, r"state/server is not there"),
        ("rounds.jsonl", lambda b: b"".join(b.splitlines(True)[1:]), r"rounds.jsonl was changed"),
        ("rounds.jsonl", lambda b: b"".join(b.splitlines(True)[:-1]), r"rounds.jsonl was changed"),
        ("rounds.jsonl", lambda b: b.splitlines(True)[0] + b, r"rounds.jsonl was changed"),
        ("rounds.jsonl", lambda b: b.replace(b"3.5", b"3.4", 1), r"rounds.jsonl was changed"),
        ("rounds.jsonl", lambda b: b.replace(b"{", b"", 1), r"rounds.jsonl was changed"),
        ("rounds.jsonl", lambda b: b"[]\n" * 3, r"rounds.jsonl was changed"),
        ("rounds.jsonl", lambda b: b"{}\n" * 3, r"rounds.jsonl was changed"),
        ("rounds.jsonl", lambda b: b.replace(b"a", b"\xff", 1), r"rounds.jsonl was changed"),
        ("rounds.jsonl", lambda b: None, r"rounds.jsonl was changed"),
    ],
)  # fmt: skip
def test_damage_is_an_error_that_names_the_file(
    three: RunFolder, name: str, damage: Callable[[bytes], bytes | None], said: str
) -> None:
    path = three.path / name
    damaged = damage(path.read_bytes())
    if damaged is None:
        path.unlink()
    else:
        path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=said):
        three.resumed(READER)


def test_a_line_that_is_no_record_is_named(three: RunFolder) -> None:
    lines = (three.path / "rounds.jsonl").read_text().splitlines(True)
    for bad in ("{}\n", "[]\n", "7\n", "{\n", lines[1].replace('"losses"', '"loses"')):
        (three.path / "rounds.jsonl").write_text(lines[0] + bad + lines[2])
        with pytest.raises(CheckpointError, match=r"rounds\.jsonl, line 2, is no record of a round"):
            three.rounds()


def test_json_files(folder: RunFolder) -> None:
    folder.write_json("x.json", {"a": [1, "ü"]})
    assert folder.read_json("x.json") == {"a": [1, "ü"]}
    for text, said in (("{", "cannot read .*x.json"), ("[]", "x.json is damaged"), ("null", "x.json is damaged")):
        (folder.path / "x.json").write_text(text)
        with pytest.raises(CheckpointError, match=said):
            folder.read_json("x.json")
    with pytest.raises(CheckpointError, match=r"cannot read .*gone.json.*is .* a run folder\?"):
        folder.read_json("gone.json")


# -- killed at any moment ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, -1, None])
def test_killed_in_a_commit(three: RunFolder, length: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing of the record, some of it, all but its end, or all of it was on disk."""
    path = three.path / "rounds.jsonl"
    before, records = three.resumed(READER), path.read_bytes()
    assert before is not None
    monkeypatch.setattr(os, "replace", killing(1))
    with pytest.raises(Killed):
        three.commit(replace(state(4), lines=before.lines), record(4))
    monkeypatch.undo()
    line = path.read_bytes().removeprefix(records)
    path.write_bytes(records + line[:length])
    looked_at = three.state(READER)
    assert path.read_bytes() == records + line[:length], "a reader has changed the run"
    again = three.resumed(READER)
    assert again is not None
    assert looked_at is not None
    assert pack(again) == pack(looked_at) == pack(before)
    assert path.read_bytes() == records
    three.commit(replace(state(4), lines=again.lines), record(4))
    after = three.resumed(READER)
    assert after is not None
    assert (after.round, three.rounds()[-1]) == (4, record(4))


def test_killed_in_the_first_commit(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", killing(1))
    with pytest.raises(Killed):
        folder.commit(state(1), record(1))
    monkeypatch.undo()
    assert folder.resumed(READER) is None
    assert folder.rounds() == []


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("length", [0, -1, None])
def test_killed_in_an_amendment(three: RunFolder, n: int, length: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the record is the old one or the new one, the state fits it, and both can be gone on from."""
    path = three.path / "rounds.jsonl"
    records = path.read_bytes()
    before = three.resumed(READER)
    assert before is not None
    longer, after = replace(record(3), validation_loss=0.5), replace(before, versions={"a": 3, "b": 3})
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(os, "replace", killing(n))
        three.amend(before, after, longer)
        assert n == 3
    assert path.read_bytes().startswith(records), "what was written has been changed"
    if n < 3:  # when nothing of the line, all but its end, or all of it was on disk
        path.write_bytes(records + path.read_bytes().removeprefix(records)[:length])
    found = three.resumed(READER)
    assert found is not None
    is_there = n == 3 or (n == 2 and length is None)
    assert three.rounds()[-1] == three.history.last() == (longer if is_there else record(3))
    assert found.versions == (after if n == 3 else before).versions
    amended = three.amend(found, replace(found, versions=after.versions), longer)
    three.commit(replace(state(4), lines=amended.lines), record(4))
    assert three.resumed(READER) is not None
    assert three.rounds() == [record(1), record(2), longer, record(4)]


def test_records_are_read_from_where_one_stopped(three: RunFolder) -> None:
    records, end = three.history.read()
    assert len(records) == 3
    assert three.history.read(end) == ([], end)
    before = three.resumed(READER)
    assert before is not None
    three.amend(before, before, replace(record(3), validation_loss=0.5))
    three.commit(replace(state(4), lines=before.lines), record(4))
    assert [r.round for r in three.history.read(end)[0]] == [3, 4]
    assert [(r.round, r.validation_loss) for r in three.rounds()] == [(1, None), (2, None), (3, 0.5), (4, None)]
    with (three.path / "rounds.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(CheckpointError, match=r"rounds\.jsonl, line 6, is no record"):
        three.history.read(end)


@pytest.mark.parametrize("block", [1, 7, 2**16])
def test_the_last_record_is_read_from_the_end(folder: RunFolder, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capfl.history.BLOCK", block)
    assert folder.history.last() is None
    for round in (1, 2, 3):
        folder.history.append(line_of(record(round)))
        assert folder.history.last() == record(round)
    folder.history.append("{cut off")
    assert folder.history.last() == record(3)


def test_records_are_on_disk_before_the_state_that_makes_them_count(
    three: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), real(fd)))
    monkeypatch.setattr(checkpoint, "write_atomically", lambda path, data: order.append(path.name))
    three.commit(state(4), record(4))
    assert [name if len(name) < 32 else "groups" for name in order] == ["fsync", "groups", "server"]


# -- groups: a file for each adapter, written once ---------------------------------------------------------


def group(n: float, idle: int = 0) -> Group:
    moved = {name: t + n for name, t in START.items()}
    return Group(moved, moved, (b"one", b"one", bytes([int(n)])), idle)


def on_disk(folder: RunFolder) -> set[str]:
    return {path.name for path in (folder.path / "state" / "groups").iterdir()}


def test_a_group_is_written_when_it_has_changed(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        checkpoint, "write_atomically", lambda path, data: (written.append(path.name), write_atomically(path, data))
    )
    first = replace(state(1), groups={EVERYBODY: group(0), "x": group(1), "y": group(2)})
    folder.commit(first, record(1))
    assert (len(written), written.pop(), set(written)) == (4, "server", on_disk(folder))

    new = replace(first.everybody, since=1)  # a group that begins with what everybody has
    second = replace(
        first, round=2, groups={**first.groups, "x": replace(first.groups["x"], idle=3), "y": group(3), "z": new}
    )
    before = on_disk(folder)
    written.clear()
    lines = folder.resumed(READER).lines  # type: ignore[union-attr]
    folder.commit(replace(second, lines=lines), record(2))
    assert len(written) == 4  # ``resumed`` has read other objects of the same bits, and they are written again
    written.clear()
    third = replace(second, round=3, lines=folder.resumed(READER).lines)  # type: ignore[union-attr]
    assert len(on_disk(folder)) == 3  # y's old one is gone, z has none of its own
    assert len(before - on_disk(folder)) == 1

    again = RunFolder(folder.path)
    read = again.resumed(READER)
    assert read is not None
    assert pack(read) == pack(replace(second, lines=third.lines))
    again.commit(replace(read, round=3, groups={**read.groups, "z": group(4)}), record(3))
    assert len(written) == 2  # z's, and the server's
    assert len(on_disk(folder)) == 4
    after = RunFolder(folder.path).state(READER)
    assert after is not None
    assert after.groups["x"].known["m.A"].tolist() == group(1).known["m.A"].tolist()
    assert (after.groups["x"].idle, after.groups["z"].since, after.groups["z"].log[-1]) == (3, 0, b"\x04")


def test_what_a_killed_process_has_left_of_groups_is_swept(three: RunFolder) -> None:
    whole = on_disk(three)
    for name in ("0" * 32, ".0123.77"):
        (three.path / "state" / "groups" / name).write_bytes(b"of a round that did not happen")
    again = RunFolder(three.path)
    assert again.state(READER) is not None
    assert len(on_disk(three)) == len(whole) + 2  # a reader leaves all as it is
    again.resumed(READER)
    assert on_disk(three) == whole


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "it is not there"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "its digest is not its name"),
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "its digest is not that of its content"),
        (lambda path: path.write_bytes(pack(ClientState("a"))), "its digest is not its name"),
    ],
)
def test_a_damaged_file_of_a_group_is_an_error(damage: Callable[[Path], object], said: str, three: RunFolder) -> None:
    (path,) = (three.path / "state" / "groups").iterdir()
    damage(path)
    for look in (three.resumed, RunFolder(three.path).state):
        with pytest.raises(
            CheckpointError,
            match=rf"state/groups/{path.name}: (the file is damaged: )?{said}; restore it from a copy, or",
        ):
            look(READER)


# -- writing -----------------------------------------------------------------------------------------------


def test_a_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "x" / "file", list[str]()
    write_atomically(path, b"old")
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (order.append(name), real(*a)))
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert order == ["fsync", "replace"]
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(CheckpointError, match=r"cannot write .*; check the folder"):
        write_atomically(path / "below", b"new")


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EIO, "check the folder")]
)  # fmt: skip
def test_a_write_that_fails_leaves_the_old_content_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int, remedy: str
) -> None:
    path, folder = tmp_path / "file", RunFolder(tmp_path / "run")
    write_atomically(path, b"old")

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, place, fail)
    with pytest.raises(CheckpointError, match=rf"cannot write {path}: {os.strerror(number)}; {remedy}.*--resume"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(CheckpointError, match=rf"(rounds.jsonl|state/groups/\w+): {os.strerror(number)}; {remedy}"):
        folder.commit(state(1), record(1))

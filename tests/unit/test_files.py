"""A folder that one process has for itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capfl.errors import CheckpointError
from capfl.files import LOCK, json_text, locked, new_folder, private_folder, write_atomically

HOLDER = """
import sys
from pathlib import Path
from capfl.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
IN_USE = "run is in use by process {} on .+; wait until it has ended"


def test_a_folder_is_locked_until_its_process_ends_even_if_it_is_killed(tmp_path: Path) -> None:
    """Who has it is named; what a killed process has left in the lock file is not."""
    run = tmp_path / "run"
    with locked(run), pytest.raises(CheckpointError, match=IN_USE.format(os.getpid())), locked(run):
        pass
    assert (run / LOCK).read_bytes() == b""
    other = subprocess.Popen([sys.executable, "-c", HOLDER, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(CheckpointError, match=IN_USE.format(other.pid)), locked(run):
        pass
    other.kill()
    other.communicate()
    assert json.loads((run / LOCK).read_text())["pid"] == other.pid
    with locked(run), locked(tmp_path / "another"):
        assert json.loads((run / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("left", ["", "{}", "[", '{"pid": "x", "host": "y"}', '"text"'])
def test_a_lock_whose_holder_has_not_said_who_it_is(left: str, tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK).write_text(left)
        with pytest.raises(CheckpointError, match="in use by another process"), locked(tmp_path):
            pass


def test_a_private_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    for path in (tmp_path / "there", tmp_path / "new" / "state"):
        private_folder(path)
        assert path.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*file"):
        private_folder(tmp_path / "file")


def test_of_several_that_want_a_new_folder_at_once_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, full = tmp_path / "new" / "run", tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    with monkeypatch.context() as all_find_it_empty:
        all_find_it_empty.setattr(Path, "iterdir", lambda path: iter(()))
        new_folder(new)
        with pytest.raises(CheckpointError, match="new/run is not empty; choose another folder"):
            new_folder(new)
    for path in (new, full):
        with pytest.raises(CheckpointError, match="is not empty"):
            new_folder(path)
    with locked(new):  # the one that has it goes on
        pass


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for take in (new_folder, lambda path: locked(path).__enter__()):
        with pytest.raises(CheckpointError, match=str(tmp_path / "run")):
            take(tmp_path / "run")


def test_who_is_reading_a_file_goes_on_reading_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new, and longer")
        assert reader.read() == b"old"
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"new, and longer"]


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": {}, "b": []},
        {"ü\n": [1, {"x": [None, 2.5, True]}, "line\nend"], "b": {"c": {"d": [[]]}}},
        "text",
        7,
    ],
)
def test_json_comes_in_pieces_as_it_comes_as_a_whole(value: object) -> None:
    def lazily(one: object) -> object:
        if isinstance(one, dict):
            return {key: lazily(own) for key, own in one.items()}
        return map(lazily, one) if isinstance(one, list) else one

    expected = json.dumps(value, indent=1)
    assert "".join(json_text(value)) == "".join(json_text(lazily(value))) == expected

"""Files that only their owner's key opens, and where the key is. States of clients: test_checkpoint.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from capfl.config import load_config
from capfl.errors import CheckpointError, ConfigError
from capfl.vault import MAGIC, Vault, open_vault

KEY, OTHER = bytes(range(32)), bytes(32)
PATH = Path("states/site.000003")


def test_what_was_locked_comes_back_and_cannot_be_read() -> None:
    data = b"the patient's answer" * 10
    blob = Vault(KEY).lock(data, PATH)
    assert Vault(KEY).unlock(blob, PATH) == data
    assert b"patient" not in blob
    assert len(blob) == len(MAGIC) + 12 + len(data) + 16
    assert Vault(KEY).lock(data, PATH) != blob  # another nonce
    assert Vault().unlock(Vault().lock(b"plain", PATH), PATH) == b"plain"


def wrong(blob: bytes) -> Iterator[tuple[bytes, Path, Vault]]:
    for at in range(len(blob)):
        yield blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :], PATH, Vault(KEY)
        yield blob[:at], PATH, Vault(KEY)
    yield blob + b"\0", PATH, Vault(KEY)
    yield blob, PATH, Vault(OTHER)
    yield blob, PATH, Vault()
    yield blob, PATH.with_name("site.000004"), Vault(KEY)
    yield b"plain", PATH, Vault(KEY)


def test_another_key_another_name_and_every_changed_byte_are_errors_that_name_the_file() -> None:
    for changed, path, vault in wrong(Vault(KEY).lock(b"some bytes", PATH)):
        with pytest.raises(CheckpointError, match=str(path)):
            vault.unlock(changed, path)


def test_a_file_of_another_run_method_or_client_is_refused(tmp_path: Path) -> None:
    """Under the same key, however it came to its place. The folder as a whole may be moved."""
    here, moved = tmp_path / "run", tmp_path / "moved"
    blob = Vault(KEY).of_run("one", here).lock(b"data", here / "state/fedit/a/a.000001")
    for run, folder, place in [
        ("two", here, "state/fedit/a/a.000001"), ("one", here, "state/local/a/a.000001"),
        ("one", here, "state/fedit/b/a.000001"), ("one", tmp_path, "run/state/fedit/a/a.000001"),
    ]:  # fmt: skip
        with pytest.raises(CheckpointError, match=r"a\.000001 cannot be opened: .* another run"):
            Vault(KEY).of_run(run, folder).unlock(blob, folder / place)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        Vault(KEY).unlock(blob, here / "state/fedit/a/a.000001")
    assert Vault(KEY).of_run("one", moved).unlock(blob, moved / "state/fedit/a/a.000001") == b"data"
    assert Vault().of_run("one", here).unlock(b"plain", here / "a") == b"plain"


def test_a_key_from_the_environment_and_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blob = Vault(KEY).lock(b"data", PATH)
    monkeypatch.setenv("SITE_KEY", f" {KEY.hex().upper()}\n")
    assert open_vault("env:SITE_KEY", tmp_path).unlock(blob, PATH) == b"data"
    (tmp_path / "key").write_text(f"{KEY.hex()}\n")
    assert open_vault(f"file:{tmp_path / 'key'}", tmp_path / "run").unlock(blob, PATH) == b"data"
    assert open_vault(None, tmp_path).unlock(b"data", PATH) == b"data"


def test_a_key_that_is_none_not_there_or_with_what_it_protects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "ab" * 31, "ab" * 33, "zz" * 32, "correct horse battery staple"):
        (tmp_path / "key").write_text(text)
        with pytest.raises(ConfigError, match="64 hexadecimal digits; make one with: openssl rand -hex 32") as caught:
            open_vault(f"file:{tmp_path / 'key'}", tmp_path / "run")
        assert not text or text not in str(caught.value)
    monkeypatch.delenv("SITE_KEY", raising=False)
    for where, reason in [
        ("env:SITE_KEY", "no environment variable SITE_KEY"),
        (f"file:{tmp_path / 'nowhere'}", f"cannot read {tmp_path / 'nowhere'}"),
        (f"file:{tmp_path / 'run' / 'key'}", "is in the run folder"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            open_vault(where, tmp_path / "run")
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigError, match=r"pip install 'capfl\[encryption\]'"):
        Vault(KEY)


def test_a_config_that_holds_the_key_itself() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.state_key"):
        load_config(None, {"runtime.state_key": "hunter2"})

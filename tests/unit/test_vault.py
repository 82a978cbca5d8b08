"""States that only their owner's key opens."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from capfl.checkpoint import ClientStore, RunFolder
from capfl.config import load_config
from capfl.engines.serial import serial
from capfl.errors import CheckpointError, ConfigError
from capfl.experiment import resume
from capfl.types import ClientState
from capfl.vault import MAGIC, Vault, open_vault
from support import tiny_run

KEY, OTHER = bytes(range(32)), bytes(32)
PATH = Path("states/site.000003")


# -- bytes -----------------------------------------------------------------------------------------------


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
    yield b"", PATH, Vault(KEY)


def test_another_key_another_name_and_every_changed_byte_are_errors_that_name_the_file() -> None:
    blob = Vault(KEY).lock(b"some bytes", PATH)
    for changed, path, vault in wrong(blob):
        with pytest.raises(CheckpointError, match=str(path)):
            vault.unlock(changed, path)


# -- where the key is -------------------------------------------------------------------------------------


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
    with pytest.raises(ConfigError, match="no environment variable SITE_KEY"):
        open_vault("env:SITE_KEY", tmp_path)
    with pytest.raises(ConfigError, match=f"cannot read {tmp_path / 'nowhere'}"):
        open_vault(f"file:{tmp_path / 'nowhere'}", tmp_path / "run")
    with pytest.raises(ConfigError, match="lies in the run folder"):
        open_vault(f"file:{tmp_path / 'key'}", tmp_path)


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigError, match=r"pip install 'capfl\[encryption\]'"):
        Vault(KEY)


def test_a_config_that_holds_the_key_itself() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.state_key"):
        load_config(None, {"runtime.state_key": "hunter2"})


# -- client states -----------------------------------------------------------------------------------------


TEMPLATE = {"m.A": torch.zeros(1, 2), "m.B": torch.zeros(2, 1)}
STATE = ClientState("site", 5, {"m.A": torch.tensor([[1.0, 2.0]])})


def store(folder: Path, vault: Vault) -> ClientStore:
    return ClientStore(folder, TEMPLATE, ClientState, vault)


def test_a_store_with_a_key(tmp_path: Path) -> None:
    locked = store(tmp_path, Vault(KEY))
    locked.save(STATE, 3)
    assert torch.equal(locked.load("site", before=4).adapter["m.A"], STATE.adapter["m.A"])
    blob = (tmp_path / "site.000003").read_bytes()
    assert b"m.A" not in blob
    assert b"steps" not in blob
    with pytest.raises(CheckpointError, match=r"site\.000003 cannot be opened"):
        store(tmp_path, Vault(OTHER)).load("site", before=4)
    with pytest.raises(CheckpointError, match=r"site\.000003 is encrypted; say in runtime\.state_key"):
        store(tmp_path, Vault()).load("site", before=4)
    (tmp_path / "site.000003").rename(tmp_path / "site.000005")  # a state of another round
    with pytest.raises(CheckpointError, match=r"site\.000005 cannot be opened"):
        locked.load("site", before=6)


# -- a run -------------------------------------------------------------------------------------------------


def test_a_run_with_a_key_is_the_same_run_and_can_be_resumed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, object] = {
        "codec__values": "ternary", "codec__mask": "top", "federation__rounds": 2, "evaluation__references": [],
        "evaluation__every": 0,
    }  # fmt: skip
    monkeypatch.setenv("SITE_KEY", KEY.hex())
    tiny_run(runs / "plain", **settings)

    def stop(self: RunFolder, *after: object) -> None:
        monkeypatch.undo()
        self.commit(*after)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(runs / "locked", runtime__state_key="env:SITE_KEY", **settings)
    kept = sorted((runs / "locked/state/clients").iterdir())
    assert kept
    assert all(path.read_bytes().startswith(MAGIC) for path in kept)
    written = b"".join(p.read_bytes() for p in (runs / "locked").rglob("*") if p.is_file())
    assert KEY not in written
    assert KEY.hex().encode() not in written

    with pytest.raises(ConfigError, match="no environment variable SITE_KEY"):
        resume(runs / "locked", serial)
    monkeypatch.setenv("SITE_KEY", OTHER.hex())
    with pytest.raises(CheckpointError, match="cannot be opened"):
        resume(runs / "locked", serial)
    monkeypatch.setenv("SITE_KEY", KEY.hex())
    resume(runs / "locked", serial)
    for path in (runs / "plain/state/clients").iterdir():
        sealed = runs / "locked/state/clients" / path.name
        assert Vault(KEY).unlock(sealed.read_bytes(), sealed) == path.read_bytes()
    assert (runs / "locked/state/server").read_bytes() == (runs / "plain/state/server").read_bytes()

"""Certificate and keys: what they are for, and what is kept when more are made."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from capfl.engines.flower.keys import hosts_of, make_keys, signer, verifier
from capfl.engines.flower.node import run_node
from capfl.engines.flower.runs import Connection
from capfl.engines.flower.server import let_in, run_server
from capfl.engines.flower.setup import Setup
from capfl.errors import CheckpointError, ConfigError, WireError
from capfl.files import locked
from capfl.types import Offer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", ["north", "south.east"], ["10.0.0.5", "server.example.org", "[FD00::7]"])
    return tmp_path / "keys"


def greeting(folder: Path, trusted: Path, name: str) -> str:
    """What a client that trusts one certificate makes of the server's under a name."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=trusted)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there, server_hostname=name), server.wrap_bio(there, back, server_side=True)
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return f"trusted, {ends[0].version()}"


def test_who_trusts_the_certificate_trusts_the_server_under_its_names_only(folder: Path, tmp_path: Path) -> None:
    for name in ("127.0.0.1", "::1", "localhost", "10.0.0.5", "server.example.org", "fd00::7"):
        assert greeting(folder, folder / "server.crt", name) == "trusted, TLSv1.3"
    assert "not valid for '10.0.0.6'" in greeting(folder, folder / "server.crt", "10.0.0.6")
    make_keys(tmp_path / "other", [], [])
    assert "self-signed certificate" in greeting(folder, tmp_path / "other" / "server.crt", "10.0.0.5")


def test_a_node_has_a_key_pair_of_its_own_that_flower_can_read(folder: Path) -> None:
    public = {}
    for name in ("north", "south.east"):
        private = load_ssh_private_key((folder / "nodes" / f"{name}.key").read_bytes(), None)
        public[name] = load_ssh_public_key((folder / "nodes" / f"{name}.pub").read_bytes())
        assert private.public_key() == public[name]
        assert public[name].curve.name == "secp384r1"
    assert public["north"] != public["south.east"]
    for path in folder.rglob("*.key"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_is_there_stays_and_a_certificate_for_other_hosts_is_an_error(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    made = make_keys(folder, ["north", "west"], ["10.0.0.5"])
    assert sorted(path.name for path in made) == ["west.key", "west.pub"]
    with pytest.raises(ConfigError, match=r"server\.crt is not for 10\.0\.0\.9; delete it and server\.key"):
        make_keys(folder, [], ["10.0.0.9"])
    assert {path: path.read_bytes() for path in before} == before
    for name in ("server.crt", "server.key"):
        (folder / name).unlink()
    make_keys(folder, [], ["10.0.0.9"])
    assert hosts_of(folder / "server.crt") == ["10.0.0.9", "localhost", "127.0.0.1", "::1"]


def test_a_name_that_is_no_client_id_is_refused(tmp_path: Path) -> None:
    for name in ("../north", "north/south", ".north", "", "a b", "-x", "x" * 300, "süd"):
        with pytest.raises(ConfigError, match="no client id"):
            make_keys(tmp_path / "keys", [name], [])
        place = tmp_path / "keys"
        with pytest.raises(ConfigError, match=r"^--client: .* is no client id; begin with"):
            run_node(Setup(name, "localhost:8443", place, place, place, place), print)
    assert not (tmp_path / "keys").exists()
    (one,) = make_keys(tmp_path / "keys", ["x" * 100], [])[2:3]
    assert one.name == "x" * 100 + ".key"


def test_what_a_node_signs_the_others_can_check(folder: Path) -> None:
    nodes = folder / "nodes"
    sign, verify = signer(nodes / "north.key"), verifier(nodes)
    signature = sign(b"data")
    assert len(signature) == 96
    verify(Offer("north", b"", signature), b"data")
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    for offer, data in [
        (Offer("north", b"", signature), b"other"), (Offer("south.east", b"", signature), b"data"),
        (Offer("north", b"", flipped), b"data"), (Offer("north", b"", b""), b"data"),
    ]:  # fmt: skip
        with pytest.raises(WireError, match=f"the key of client '{offer.client}' is not signed by its node"):
            verify(offer, data)
    for stranger in ("west", "../nodes/north"):
        with pytest.raises(WireError, match="has no public key of client"):
            verify(Offer(stranger, b"", signature), b"data")


def test_a_file_that_is_no_key_is_named(folder: Path) -> None:
    for path in (folder / "server.crt", folder / "nodes" / "west.key"):
        with pytest.raises(ConfigError, match=rf"{path.name} is no key of capfl flower keys"):
            signer(path)


def test_a_node_with_something_else_for_a_key_does_not_start(folder: Path, tmp_path: Path) -> None:
    nodes, certificate = folder / "nodes", folder / "server.crt"
    for key, said in [
        (nodes / "north.pub", r"north\.pub is no key of capfl flower keys: .*; give nodes/CLIENT\.key"),
        (certificate, r"server\.crt is no key of capfl flower keys"),
        (nodes / "none.key", r"none\.key: there is no such file"),
    ]:
        with pytest.raises(ConfigError, match=said):
            run_node(Setup("north", "localhost:8443", folder, tmp_path / "state", certificate, key), print)
    assert not (tmp_path / "state").exists()


def test_a_node_that_is_to_check_the_others_is_given_a_folder(folder: Path) -> None:
    certificate, key = folder / "server.crt", folder / "nodes" / "north.key"
    with pytest.raises(ConfigError, match=r"--peers: .* is no folder; give one with the public keys of all nodes"):
        run_node(Setup("north", "localhost:8443", folder, folder, certificate, key, folder / "none"), print)


def test_a_second_node_or_server_of_one_folder_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody else may look into it."""

    def started(*_: object) -> None:
        raise AssertionError("it was started")

    for room in ("node", "server"):
        monkeypatch.setattr(f"capfl.engines.flower.{room}.supervise", started)
    state = tmp_path / "state"
    setup = Setup("north", "localhost:1", folder, state, folder / "server.crt", folder / "nodes/north.key")
    with locked(state):
        for run in (
            lambda: run_node(setup, print),
            lambda: run_server(state, "127.0.0.1", 1, folder, print),
        ):
            state.chmod(0o755)
            with pytest.raises(CheckpointError, match=f"state is in use by process {os.getpid()} on"):
                run()
            assert state.stat().st_mode & 0o777 == 0o700


def test_a_new_key_takes_the_place_of_the_old_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server starts again; and who has none any more is not let in."""
    asked: list[tuple[str, ...]] = []

    def ask(connection: Connection, *words: str) -> dict[str, str]:
        asked.append(words[1:2] + words[-1:])
        return {"node-id": str(len(asked))}

    def start() -> list[tuple[str, ...]]:
        asked.clear()
        let_in(folder / "nodes", tmp_path, lambda text: None, lambda event, client: events.append((event, client)))
        return list(asked)

    monkeypatch.setattr(Connection, "ask", ask)
    events: list[tuple[str, str]] = []
    assert start() == [("register", "north"), ("register", "south.east")]
    assert start() == []
    for ending in ("key", "pub"):
        (folder / "nodes" / f"north.{ending}").unlink()
        (folder / "nodes" / f"south.east.{ending}").unlink()
    make_keys(folder, ["north"], [])
    events.clear()
    assert start() == [("unregister", "1"), ("unregister", "2"), ("register", "north")]
    assert events == [("key removed", "north"), ("key removed", "south.east"), ("key added", "north")]

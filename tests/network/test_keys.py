"""Certificates and keys: what they are for, and what is kept when more are made."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from capfl.engines.flower.keys import hosts_of, make_keys
from capfl.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", ["north", "south.east"], ["10.0.0.5", "server.example.org"], days=2)
    return tmp_path / "keys"


def greeting(folder: Path, authority: Path, name: str) -> str:
    """What a client that trusts an authority makes of the server's certificate under a name."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as wrapped:
                wrapped.recv(1)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as wrapped:
            wrapped.send(b"x")
            return "trusted"
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        ours.close()
        thread.join()


def test_who_trusts_the_authority_trusts_the_server_under_its_names_only(folder: Path, tmp_path: Path) -> None:
    for name in ("127.0.0.1", "localhost", "10.0.0.5", "server.example.org"):
        assert greeting(folder, folder / "ca.crt", name) == "trusted"
    assert "not valid for '10.0.0.6'" in greeting(folder, folder / "ca.crt", "10.0.0.6")
    make_keys(tmp_path / "other", [], [], days=2)
    assert "issuer" in greeting(folder, tmp_path / "other" / "ca.crt", "10.0.0.5")


def test_a_node_has_a_key_pair_of_its_own_that_flower_can_read(folder: Path) -> None:
    for name in ("north", "south.east"):
        private = load_ssh_private_key((folder / "nodes" / f"{name}.key").read_bytes(), None)
        public = load_ssh_public_key((folder / "nodes" / f"{name}.pub").read_bytes())
        assert private.public_key().public_numbers() == public.public_numbers()
        assert public.curve.name == "secp384r1"
    assert (folder / "nodes" / "north.pub").read_bytes() != (folder / "nodes" / "south.east.pub").read_bytes()
    for path in folder.rglob("*.key"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_is_there_stays(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    made = make_keys(folder, ["north", "west"], ["10.0.0.5"], days=2)
    assert sorted(path.name for path in made) == ["west.key", "west.pub"]
    assert {path: path.read_bytes() for path in before} == before


def test_a_certificate_for_other_hosts_is_not_silently_kept(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.crt is not for 10\.0\.0\.9; delete it and server\.key"):
        make_keys(folder, [], ["10.0.0.9"], days=2)
    (folder / "server.crt").unlink()
    (folder / "server.key").unlink()
    authority = (folder / "ca.crt").read_bytes()
    make_keys(folder, [], ["10.0.0.9"], days=2)
    assert hosts_of(folder / "server.crt") == ["10.0.0.9", "localhost", "127.0.0.1"]
    assert (folder / "ca.crt").read_bytes() == authority


def test_an_authority_without_its_key_signs_nothing(folder: Path) -> None:
    (folder / "server.crt").unlink()
    (folder / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"ca\.key"):
        make_keys(folder, [], [], days=2)


def test_a_name_that_is_no_client_id_is_refused(tmp_path: Path) -> None:
    for name in ("../north", "north/south", ".north", "", "a b", "-x"):
        with pytest.raises(ConfigError, match="no client id"):
            make_keys(tmp_path / "keys", [name], [], days=2)
    assert not (tmp_path / "keys").exists()

"""Certificate and keys of a network: by what nodes know the server, the server its nodes, and nodes each other.

The server has one certificate, which each site is given and trusts alone. Every node has a key pair of its own. P-384
throughout: the strongest curve that Flower's node authentication takes. By this key a node also signs its keys of
secure aggregation, which the server hands on to the others.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from capfl.engines.flower.addresses import LOCAL, bare
from capfl.engines.flower.certificate import certificates
from capfl.engines.flower.names import NAME, check_client
from capfl.errors import ConfigError, WireError
from capfl.roles.keyring import Sign, Verify
from capfl.types import Offer

K = TypeVar("K")

HALF = 48  # bytes of either number of a signature
DAYS = 3650  # for which a certificate is valid; another one has to be taken to every site


def make_keys(folder: Path, nodes: Sequence[str], hosts: Sequence[str]) -> list[Path]:
    """Make what is missing of ``server.crt``, ``server.key`` and ``nodes/NAME``; what is there stays as it is.

    Args:
        nodes: client ids.
        hosts: names and addresses under which nodes reach the server, beside those on its own machine.

    Returns:
        The files that were made.

    Raises:
        ConfigError: a node's name is no client id; or the server's certificate is there, and not for all hosts.
    """
    for name in nodes:
        check_client(name, "--nodes")
    asked = list(map(bare, hosts))
    made: list[Path] = []
    if not (folder / "server.crt").exists():
        key = ec.generate_private_key(ec.SECP384R1())
        made += _written(folder / "server", ".crt", key, PrivateFormat.PKCS8, _certificate(key, [*asked, *LOCAL]))
    elif lacking := sorted(set(asked) - set(hosts_of(folder / "server.crt"))):
        raise ConfigError(
            f"{folder}/server.crt is not for {', '.join(lacking)}; delete it and server.key, make them anew with "
            "every --host, and give the new server.crt to every site"
        )
    for name in nodes:
        if not (folder / "nodes" / f"{name}.pub").exists():
            key = ec.generate_private_key(ec.SECP384R1())
            public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
            made += _written(folder / "nodes" / name, ".pub", key, PrivateFormat.OpenSSH, public)
    return made


def hosts_of(certificate: Path) -> list[str]:
    """The names and addresses that a server's certificate is for. Raises ConfigError: it is none."""
    names = certificates(certificate)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def signer(key: Path) -> Sign:
    """Signs by a node's key: ECDSA with SHA-384, r and s of 48 bytes each.

    Raises:
        ConfigError: the file is no key of ``make_keys``.
    """
    own = _loaded(key, lambda data: load_ssh_private_key(data, None))
    if not isinstance(own, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{key} is a key of another kind; make one with: capfl flower keys")

    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(own.sign(data, ec.ECDSA(hashes.SHA384())))
        return r.to_bytes(HALF, "big") + s.to_bytes(HALF, "big")

    return sign


def verifier(folder: Path) -> Verify:
    """Checks what other nodes have signed, by their public keys CLIENT.pub in a folder."""

    def verify(offer: Offer, data: bytes) -> None:
        path = folder / f"{offer.client}.pub"
        if not re.fullmatch(NAME, offer.client) or not path.is_file():
            raise WireError(f"--peers: {folder} has no public key of client {offer.client!r}, whose update is summed")
        public = _loaded(path, load_ssh_public_key)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ConfigError(f"--peers: {path} is a key of another kind; give what capfl flower keys made")
        r, s = (int.from_bytes(half, "big") for half in (offer.signature[:HALF], offer.signature[HALF:]))
        try:
            public.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature as error:
            raise WireError(f"the key of client {offer.client!r} is not signed by its node: {path}") from error

    return verify


def _loaded(path: Path, load: Callable[[bytes], K]) -> K:
    try:
        return load(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no key of capfl flower keys: {error}; give nodes/CLIENT.key") from error


def _certificate(key: ec.EllipticCurvePrivateKey, hosts: Sequence[str]) -> bytes:
    """A certificate that is its own authority and can sign no other."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "capfl server")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of sites differ
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA384())
        .public_bytes(Encoding.PEM)
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _written(
    place: Path, suffix: str, key: ec.EllipticCurvePrivateKey, kind: PrivateFormat, public: bytes
) -> list[Path]:
    """Write a secret for its owner alone, and what is public of it. Neither may be there before."""
    secret = key.private_bytes(Encoding.PEM, kind, NoEncryption())
    made = []
    for ending, data, mode in ((".key", secret, 0o600), (suffix, public, 0o644)):
        path = Path(f"{place}{ending}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
        made.append(path)
    return made

"""Certificate and keys of a network: by what nodes know the server, and the server its nodes.

The server has one certificate, which each site is given and trusts alone. Every node has a key pair of its own. P-384
throughout: the strongest curve that Flower's node authentication takes.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from capfl.engines.flower.addresses import LOCAL, bare
from capfl.errors import ConfigError

DAYS = 3650  # for which a certificate is valid; another one has to be taken to every site


def make_keys(folder: Path, nodes: Sequence[str], hosts: Sequence[str]) -> list[Path]:
    """Make what is missing of ``server.crt``, ``server.key`` and ``nodes/NAME``; what is there stays as it is.

    Args:
        nodes: client ids.
        hosts: names and addresses by which nodes reach the server, beside those on its own machine.

    Returns:
        The files that were made.

    Raises:
        ConfigError: a node's name is no client id; or the server's certificate is there, and not for all hosts.
    """
    for name in nodes:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(
                f"--nodes: {name!r} is no client id; begin with a letter, go on with letters, digits, _-."
            )
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
    """The names and addresses that a server's certificate is for."""
    read = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


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

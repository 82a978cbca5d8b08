"""Certificates and keys of a network: by what nodes know the server, and the server its nodes.

One authority signs the server's certificate, and every node has a key pair of its own. P-384 throughout: the strongest
curve that Flower's node authentication takes.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from capfl.errors import ConfigError

AUTHORITY_DAYS = 3650
LOCAL = ("localhost", "127.0.0.1")


def make_keys(folder: Path, nodes: Sequence[str], hosts: Sequence[str], days: int) -> list[Path]:
    """Make what is missing of ``ca``, ``server`` and ``nodes/NAME``, and say what that was. The rest stays as it is.

    Args:
        nodes: client ids.
        hosts: names and addresses by which nodes reach the server, beside those on its own machine.
        days: for which the server's certificate is valid.

    Raises:
        ConfigError: a node's name is no client id; or the server's certificate is there, and not for all hosts.
    """
    for name in nodes:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(
                f"--nodes: {name!r} is no client id; begin with a letter, go on with letters, digits, _-."
            )
    hosts = list(dict.fromkeys([*hosts, *LOCAL]))
    made: list[Path] = []
    if not (folder / "ca.crt").exists():
        made += _authority(folder / "ca")
    if not (folder / "server.crt").exists():
        made += _server(folder / "server", folder / "ca", hosts, days)
    elif lacking := sorted(set(hosts) - set(hosts_of(folder / "server.crt"))):
        raise ConfigError(
            f"{folder / 'server.crt'} is not for {', '.join(lacking)}; delete it and server.key, and it will be "
            "made anew (nodes keep their keys and ca.crt)"
        )
    for name in nodes:
        if not (folder / "nodes" / f"{name}.pub").exists():
            made += _node(folder / "nodes" / name)
    return made


def hosts_of(certificate: Path) -> list[str]:
    """The names and addresses that a server's certificate is for."""
    read = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def _authority(place: Path) -> list[Path]:
    key, name = _new_key(), _name("capfl authority")
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = _certificate(name, name, key, AUTHORITY_DAYS, authority=True).add_extension(usage, critical=True)
    return _written(place, key, certificate.sign(key, hashes.SHA384()))


def _server(place: Path, authority: Path, hosts: Sequence[str], days: int) -> list[Path]:
    try:
        issuer = x509.load_pem_x509_certificate(authority.with_suffix(".crt").read_bytes())
        signer = serialization.load_pem_private_key(authority.with_suffix(".key").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{authority}.key and .crt are to sign the server's certificate: {error}") from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{authority}.key is no elliptic-curve key; use the one that capfl flower keys made")
    key = _new_key()
    names = [x509.IPAddress(ip) if (ip := _address(host)) else x509.DNSName(host) for host in hosts]
    certificate = (
        _certificate(_name("capfl server"), issuer.subject, key, days, authority=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return _written(place, key, certificate.sign(signer, hashes.SHA384()))


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, authority: bool
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of sites differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _node(place: Path) -> list[Path]:
    """An OpenSSH key pair, as ``ssh-keygen -t ecdsa -b 384`` makes them."""
    key = _new_key()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return _pair(place, ".pub", key, serialization.PrivateFormat.OpenSSH, public + b"\n")


def _written(place: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> list[Path]:
    public = certificate.public_bytes(serialization.Encoding.PEM)
    return _pair(place, ".crt", key, serialization.PrivateFormat.PKCS8, public)


def _pair(
    place: Path, suffix: str, key: ec.EllipticCurvePrivateKey, kind: serialization.PrivateFormat, public: bytes
) -> list[Path]:
    """Write a secret for its owner alone, and what is public of it. Neither may be there before."""
    secret = key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
    made = []
    for ending, data, mode in ((".key", secret, 0o600), (suffix, public, 0o644)):
        path = Path(f"{place}{ending}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
        made.append(path)
    return made


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None

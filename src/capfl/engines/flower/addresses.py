"""Hosts and ports, of IPv6 as of IPv4: in brackets before a port, and without brackets anywhere else."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Mapping

from capfl.errors import ConfigError

LOCAL = ("localhost", "127.0.0.1", "::1")  # by which a machine reaches itself
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # a host to listen on -> how the machine itself reaches it


def bare(host: str) -> str:
    """A name as it is; an address in the form that everybody writes, without brackets."""
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return str(ipaddress.ip_address(plain))
    except ValueError:
        return host


def joined(host: str, port: int) -> str:
    """HOST:PORT, or [HOST]:PORT of an IPv6 address."""
    return f"[{bare(host)}]:{port}" if ":" in bare(host) else f"{bare(host)}:{port}"


def parted(address: str) -> tuple[str, int]:
    """Host and port of an address as a user writes it.

    Raises:
        ConfigError: it has no port, or an IPv6 address without brackets, which could end in a port or not.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535 or "/" in host:
        raise ConfigError(f"--server: {address!r} is no address; give HOST:PORT, such as server.example.org:8443")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ConfigError(f"--server: {address!r} is ambiguous; write the IPv6 address in brackets: [{host}]:{port}")
    return bare(host), int(port)


def check_port(host: str, port: int) -> None:
    """See that a server can listen on a port, before it is started.

    Raises:
        ConfigError: somebody listens there, the address is not this machine's, or the port is for others.
    """
    try:
        (kind, _, _, _, place), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with socket.socket(kind, socket.SOCK_STREAM) as tried:
            tried.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # an ended server's last connections do not count
            tried.bind(place)
            tried.listen()  # of two that share an address by SO_REUSEADDR, one may listen
    except OSError as error:
        remedy = {
            errno.EADDRINUSE: "end what listens there, or choose another --port",
            errno.EACCES: "choose a --port from 1024 on",
            errno.EADDRNOTAVAIL: "give an address of this machine as --host",
        }.get(error.errno or 0, "give another --host or --port")
        raise ConfigError(f"cannot listen on {joined(host, port)}: {error.strerror or error}; {remedy}") from error


def direct(environment: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """The variables with which no request to this machine, or to other hosts that are given, goes to a proxy.

    Both spellings are set, because programs read one or the other.
    """
    named = [environment.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    given = [host.strip() for text in named for host in text.split(",") if host.strip()]
    text = ",".join(dict.fromkeys([*given, *LOCAL, *map(bare, hosts)]))
    return {"no_proxy": text, "NO_PROXY": text}

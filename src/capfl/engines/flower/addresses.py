"""Hosts and ports, of IPv6 as of IPv4: in brackets before a port, and without brackets anywhere else."""

from __future__ import annotations

import ipaddress
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


def direct(environment: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """The variables with which no request to this machine, or to other hosts that are given, goes to a proxy.

    Both spellings are set, because programs read one or the other.
    """
    named = [environment.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    given = [host.strip() for text in named for host in text.split(",") if host.strip()]
    text = ",".join(dict.fromkeys([*given, *LOCAL, *map(bare, hosts)]))
    return {"no_proxy": text, "NO_PROXY": text}

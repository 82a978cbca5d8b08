"""What a site has to know before its node joins: clock, certificate, key, port, disk, model and data, one by one."""

from __future__ import annotations

import datetime
import os
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

from capfl import doctor
from capfl.config import load_config
from capfl.engines.flower.addresses import LOCAL, joined, parted
from capfl.engines.flower.allowed import Allowed
from capfl.engines.flower.budget import Budget
from capfl.engines.flower.certificate import certificates, check_certificate
from capfl.engines.flower.keys import signer
from capfl.engines.flower.names import check_client
from capfl.engines.flower.node import HINTS
from capfl.engines.flower.processes import meanings
from capfl.engines.flower.setup import Setup
from capfl.errors import CapflError, ConfigError
from capfl.files import is_locked
from capfl.model.place import check_base, remark

AHEAD, BEHIND = 5.0, 300.0  # seconds by which Flower lets a node's clock be ahead of the server's, and behind it
WITHIN = 10.0  # seconds for an answer of the server
LITTLE, TOO_LITTLE = 5 * 10**9, 10**9  # bytes of the disk of --state

Kind = Literal["ok", "warning", "failed"]
Date = datetime.datetime | None


@dataclass(frozen=True)
class Finding:
    """What came of one check; where it is not ``ok``, with the remedy."""

    kind: Kind
    what: str
    said: str


def examine(setup: Setup) -> Iterator[Finding]:
    """Check what ``run_node`` would be given; nothing is started and nothing is written."""
    yield _tried("packages", _packages)
    yield _tried("client", lambda: _client(setup.client))
    yield _tried("certificate", lambda: _certificate(setup.certificate))
    yield _tried("key", lambda: _key(setup.client, setup.key))
    if (peers := setup.peers) is not None:
        yield _tried("peers", lambda: _peers(peers))
    yield _tried("runs", lambda: _runs(setup.runs, setup.state))
    if (most := setup.max_epsilon) is not None:
        yield _tried("epsilon", lambda: ("ok", Budget(most, setup.state).said()))
    server, date = _server(setup.server, setup.certificate)
    yield server
    yield clock(date, datetime.datetime.now(datetime.UTC))
    yield _tried("disk", lambda: _disk(setup.state))
    yield _tried("model", lambda: _model(setup.settings.get("model.path", "smollm2")))
    yield _tried("data", lambda: _data(setup.data, load_config(None, setup.settings).data.columns))


def clock(at_server: Date, here: datetime.datetime) -> Finding:
    """This machine's clock beside the server's, which is known to a second."""
    if at_server is None:
        return Finding(
            "warning", "clock", "cannot be compared, because the server does not answer; set the clock by NTP"
        )
    ahead = (here - at_server).total_seconds()
    far = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if not -BEHIND < ahead < AHEAD + 1:
        return Finding("failed", "clock", f"it is {far}, and the server refuses that; set the wrong clock by NTP")
    if not -BEHIND / 5 < ahead < AHEAD / 2:
        return Finding("warning", "clock", f"it is {far}; set the wrong clock by NTP before the server refuses it")
    return Finding("ok", "clock", "as the server's")


def _tried(what: str, check: Callable[[], tuple[Kind, str]]) -> Finding:
    try:
        kind, said = check()
        return Finding(kind, what, said)
    except (CapflError, OSError) as error:
        return Finding("failed", what, str(error))


def _packages() -> tuple[Kind, str]:
    notes: list[doctor.Note] = []
    versions = doctor.versions(notes)
    broken = [note.text for note in notes if note.kind == "broken"]
    if broken:
        return "failed", "; ".join(broken)
    return "ok", f"capfl {versions['capfl']}, torch {versions['torch']}, flwr {versions['flwr']}; as on the server?"


def _client(client: str) -> tuple[Kind, str]:
    check_client(client, "--client")
    return "ok", client


def _certificate(path: Path) -> tuple[Kind, str]:
    warnings = check_certificate(path)
    return ("warning", warnings[0].removeprefix("WARNING: ")) if warnings else ("ok", str(path))


def _key(client: str, path: Path) -> tuple[Kind, str]:
    signer(path)
    if path.stat().st_mode & 0o077:
        return "warning", f"others on this machine can read {path}; chmod 600 {path}"
    if path.stem != client:
        return "warning", f"{path} is called {path.stem!r}, and the key's name is the client's id; is it {client!r}'s?"
    return "ok", f"{path}; whether the server knows it shows when the node joins"


def _peers(folder: Path) -> tuple[Kind, str]:
    names = sorted(path.stem for path in folder.glob("*.pub"))
    if not names:
        return "failed", f"--peers: {folder} has no public keys; get CLIENT.pub from every other site"
    return "ok", f"public keys of {', '.join(names)}"


def _runs(runs: Sequence[str], state: Path) -> tuple[Kind, str]:
    said = Allowed(runs, state).said()
    return ("ok", said) if runs else ("warning", f"{said}; name those that all sites agreed on: --run NAME")


def _server(server: str, certificate: Path) -> tuple[Finding, Date]:
    """Whether the server is there, and its date."""
    try:
        date = _date(server, certificate)
    except (CapflError, OSError) as error:
        return Finding("failed", "server", str(error)), None
    return Finding("ok", "server", f"{server} answers"), date


def _date(server: str, certificate: Path) -> Date:
    """The server's, if it says one, asked for as a node would reach it.

    Raises:
        ConfigError: the address or the certificate is none, or the server does not answer.
    """
    host, port = parted(server)
    certificates(certificate)
    context = ssl.create_default_context(cafile=certificate)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if host in LOCAL:
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        with urllib.request.build_opener(*handlers).open(
            f"https://{joined(host, port)}/health", timeout=WITHIN
        ) as reply:
            return parsedate_to_datetime(reply.headers["Date"]) if reply.headers["Date"] else None
    except urllib.error.HTTPError as error:
        raise ConfigError(f"{server} answers with HTTP {error.code}: is that the server, and its port?") from error
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
        meant = meanings([reason], HINTS) or [
            f"{reason}; is the server running there, and is its port open to this site (firewall, https_proxy)?"
        ]
        raise ConfigError(f"{server}: {meant[0]}") from error


def _disk(state: Path) -> tuple[Kind, str]:
    there = next(place for place in (state, *state.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return "failed", f"{there} cannot be written to; give another --state, or run the node as its owner"
    free = shutil.disk_usage(there).free
    said = f"{free / doctor.GB:.1f} GB are free in {there}"
    if free < TOO_LITTLE:
        return "failed", f"{said}; free some space, or give a --state elsewhere"
    if free < LITTLE:
        return "warning", f"{said}; adapters, states and logs of months may need more"
    if is_locked(state):
        return "warning", f"{said}; a node already uses this folder: give another --state"
    return "ok", said


def _model(path: str) -> tuple[Kind, str]:
    check_base(path)
    first = remark(path)
    said = f"{path}; the run chooses the model, a site only its folder: --set model.path=..."
    return ("warning", f"{first}; start the node in time") if first else ("ok", said)


def _data(path: Path, columns: Mapping[str, str] | None) -> tuple[Kind, str]:
    if not path.exists():
        return "failed", f"{path}: there is no such file"
    from capfl.data import check_file

    if unknown := check_file(path, columns):
        return "warning", f"{path}: {unknown}, in the run's config or here by --set data.columns=..."
    return "ok", f"{path} can be read"

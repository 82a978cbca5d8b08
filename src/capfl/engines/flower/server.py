"""The server, where nodes and runs meet: Flower's SuperLink, the executor of its runs, and the nodes it lets in."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.request
from pathlib import Path

from capfl.engines.flower.addresses import ANYWHERE, bare, check_port, joined
from capfl.engines.flower.certificate import check_certificate, reminder
from capfl.engines.flower.events import Events
from capfl.engines.flower.keys import hosts_of
from capfl.engines.flower.processes import Note, Process, Say, environment, internal, new_secret, supervise
from capfl.engines.flower.runs import Connection, ServerError
from capfl.errors import ConfigError
from capfl.files import locked, private_folder, write_atomically

READY_WITHIN = 60.0  # seconds
HINTS = {
    "address already in use": "another program has taken the port; stop it, or choose another --port",
    "database or disk is full": "the disk is full; free some space",
    "No space left on device": "the disk is full; free some space",
}


def run_server(home: Path, host: str, port: int, keys: Path, say: Say) -> None:
    """Run a server on this machine until SIGTERM or Ctrl-C: the SuperLink, and the executor of its runs.

    The executor, which starts a process for every run, is not the SuperLink's child and the SuperLink's state is a
    file, so that a run outlives its death.

    Args:
        home: folder of the server's state and logs.
        keys: a folder of ``capfl flower keys``.

    Raises:
        ServerError: it does not answer, or does not register a node.
        ConfigError: the certificate is missing, has expired or is not for the host; or the port is in use.
        CheckpointError: another server has the folder, or it cannot be written.
    """
    host = bare(host)
    reached = ANYWHERE.get(host, host)
    certificate, secret = keys / "server.crt", keys / "server.key"
    if missing := [path.name for path in (certificate, secret) if not path.is_file()]:
        raise ConfigError(f"{keys}: no {', '.join(missing)}; make them with: capfl flower keys {keys}")
    check_certificate(certificate)  # what it warns of is said when the server is there
    if reached not in hosts_of(certificate):
        raise ConfigError(
            f"--host: {certificate} is not for {reached}, so nobody could reach the server there; delete it and "
            f"server.key, and make them anew with: capfl flower keys {keys} --host {reached}"
        )
    private_folder(home)
    with locked(home):
        check_port(host, port)
        _run(home, host, port, keys, say)


def _run(home: Path, host: str, port: int, keys: Path, say: Say) -> None:
    reached = ANYWHERE.get(host, host)
    address, certificate, secret = joined(reached, port), keys / "server.crt", keys / "server.key"
    inside, known = environment(home, reached), ["--superexec-auth-secret-file", str(new_secret(home))]
    server = ["--host", host, "--port", str(port), "--database", str(home / "state.db")]
    server += ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(secret), "--ssl-ca-certfile", str(certificate)]
    server += ["--enable-supernode-auth", "--isolation", "process", *known]
    runs = ["--runtime-api-address", address, "--root-certificates", str(certificate), "--parent-pid", str(os.getpid())]
    runs += known
    processes = [
        Process("server", internal("server", *server), inside, home / "server.log", hints=HINTS, tells=True),
        Process("runs", ["flower-superexec", *runs], inside, home / "runs.log"),
    ]
    Connection(home).write(address, certificate)
    note, remind = Events(home), reminder(certificate, say)
    say(f"server starting; its log is {home / 'server.log'}")
    by, ready = time.monotonic() + READY_WITHIN, False

    def step() -> None:
        nonlocal ready
        if ready:
            next(remind)
        if not ready and _answers(address, certificate):
            let_in(keys / "nodes", home, say, note)
            say(f"server ready at {address}")
            note("ready", address=address)
            ready = True
        if not ready and time.monotonic() > by:
            raise ServerError(f"the server does not answer at {address}; see {home / 'server.log'}")

    supervise(processes, say, step, note)


def let_in(keys: Path, home: Path, say: Say, note: Note) -> None:
    """Have the nodes whose public keys are in a folder, and no others, as nodes that may come to a server.

    Args:
        note: is told which nodes' keys are let in or no longer are.

    Raises:
        ServerError: the server refuses.
    """
    record, flower = home / "nodes.json", Connection(home)
    known: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}  # name and key -> number
    wanted = {f"{path.stem} {path.read_text()}": path for path in keys.glob("*.pub")}
    for key in sorted(known.keys() - wanted.keys()):
        flower.ask("supernode", "unregister", known.pop(key))
        say(f"node {key.split()[0]}: its key was removed, so it may no longer join")
        note("key removed", client=key.split()[0])
        write_atomically(record, json.dumps(known).encode())
    for key in sorted(wanted.keys() - known.keys()):
        name = wanted[key].stem
        known[key] = str(flower.ask("supernode", "register", str(wanted[key]), "--name", name)["node-id"])
        say(f"node {name}: its key is known, so it may join")
        note("key added", client=name)
        write_atomically(record, json.dumps(known).encode())


def _answers(address: str, certificate: Path) -> bool:
    trust = ssl.create_default_context(cafile=certificate)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    try:
        with opener.open(f"https://{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False

"""A node: what a site runs. Flower's SuperNode, and the process that does the site's part of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from capfl.config import load_config
from capfl.engines.flower.addresses import joined, parted
from capfl.engines.flower.allowed import Allowed
from capfl.engines.flower.budget import Budget
from capfl.engines.flower.certificate import RENEW, check_certificate, reminder
from capfl.engines.flower.events import Events
from capfl.engines.flower.keys import signer
from capfl.engines.flower.names import check_client
from capfl.engines.flower.processes import Process, Say, environment, free_port, internal, new_secret, supervise
from capfl.engines.flower.setup import Setup
from capfl.errors import ConfigError
from capfl.files import locked, private_folder

WRONG_ADDRESS = (
    "the server's certificate is not for this address; use an address that it names, or have a "
    "new one made with `capfl flower keys --host`"
)
SAID = {  # of words in Flower's log, what is said at once
    "SuperNode ID": "has joined the server",
    "Connection attempt failed": (
        "the server does not answer; the node tries again until it does. If the server should be up, "
        "capfl flower doctor says what is wrong"
    ),
}
HINTS = {  # what words in Flower's log mean; of each line, the first that it has
    "code: 2004": (
        "the server refuses the node: its key is not registered there, or a node with this key is "
        "already there; a killed one counts for up to a minute"
    ),
    "code: 2001": "the server accepts only nodes with keys, and this one has none; give its --key",
    "401 Unauthorized": (
        "the server refuses the node: its key is not the registered one, or its clock is more than "
        "five seconds ahead of the server's or five minutes behind; set both clocks by NTP"
    ),
    "certificate has expired": f"the certificate that the server shows has expired, or this machine's clock is wrong; "
    f"on the server's machine, {RENEW}",
    "certificate is not yet valid": "the certificate that the server shows is not valid yet: set this machine's clock",
    "Hostname mismatch": WRONG_ADDRESS,
    "IP address mismatch": WRONG_ADDRESS,
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not for this address, or differs from --certificate",
}


def run_node(setup: Setup, say: Say) -> None:
    """Run a node of one client until SIGTERM or Ctrl-C.

    Raises:
        DataError: the data cannot be read.
        ConfigError: a file is missing, is not what it should be, or has a name that cannot be handed on; the
            certificate has expired; or the address or the client's id is none.
        CheckpointError: another node has the folder, or it cannot be written.
    """  # fmt: skip
    client, state, peers = setup.client, setup.state, setup.peers
    check_client(client, "--client")
    for path in (setup.data, setup.certificate, setup.key):
        if not (path.is_file() or (path == setup.data and path.is_dir())):
            raise ConfigError(f"{path}: there is no such file")
    if peers is not None and not peers.is_dir():
        raise ConfigError(f"--peers: {peers} is no folder; give one with the public keys of all nodes, CLIENT.pub")
    allowed = Allowed(setup.runs, state)
    budget = None if setup.max_epsilon is None else Budget(setup.max_epsilon, state)
    check_certificate(setup.certificate)
    signer(setup.key)
    server = joined(*parted(setup.server))
    given = {"client": client, "data": str(setup.data.absolute()), "state": str(state.absolute())}
    given |= {"key": str(setup.key.absolute())} | ({"peers": str(peers.absolute())} if peers else {})
    given |= {"runs": " ".join(setup.runs)} if setup.runs else {}
    given |= {"epsilon": repr(setup.max_epsilon)} if setup.max_epsilon is not None else {}
    given |= {"settings": json.dumps(dict(setup.settings))} if setup.settings else {}
    if wrong := [text for text in given.values() if "'" in text or "\n" in text]:
        raise ConfigError(f"{wrong[0]!r}: Flower accepts no quotes and line ends in a path; rename it")
    private_folder(state)
    with locked(state):
        with ProcessPoolExecutor(1, get_context("spawn")) as other:  # for a moment, because it loads torch
            other.submit(_read, setup).result()
        note, remind = Events(state), reminder(setup.certificate, say)
        say(f"node {client}: starting; logs and adapters go to {state}")
        say(f"node {client}: {allowed.said()}")
        if budget is not None:
            say(f"node {client}: {budget.said()}")
        supervise(_processes(setup, server, given), say, lambda: next(remind), note)


def _processes(setup: Setup, server: str, given: Mapping[str, str]) -> list[Process]:
    """The SuperNode and the worker, which know each other by a secret: others on this machine reach the port, too."""
    client, state = setup.client, setup.state
    port, inside, secret = free_port(), environment(state / "flower"), str(new_secret(state))
    node = ["--superlink", server, "--host", "127.0.0.1", "--port", str(port), "--isolation", "process"]
    node += ["--root-certificates", str(setup.certificate), "--auth-supernode-private-key", str(setup.key)]
    node += ["--superexec-auth-secret-file", secret]
    node += ["--node-config", " ".join(f"{name}='{text}'" for name, text in given.items())]
    supernode = Process(f"node {client}", internal("node", *node), inside, state / "node.log", hints=HINTS, warns=SAID)
    # a SuperNode waits for ever for a reply whose sender has ended while it was sending
    worker = Process(
        f"worker {client}", internal("worker", f"127.0.0.1:{port}", secret), inside, state / "worker.log",
        takes=(supernode,), tells=True,
    )  # fmt: skip
    return [supernode, worker]


def _read(setup: Setup) -> None:
    from capfl.data import check_file

    check_file(setup.data, load_config(None, setup.settings).data.columns)

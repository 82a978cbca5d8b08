"""The commands of the network: `capfl flower ...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from platformdirs import user_state_path

from capfl.checks import config_of, free_folder
from capfl.cli.terminal import FLAGS, ConfigCommand, ConfigFile, Sets, errors, load_given
from capfl.config import Config
from capfl.config.load import load_command
from capfl.errors import ConfigError, printable
from capfl.interruption import Interrupted, interruptible

STATE = user_state_path("capfl")  # the user's folder for what programs remember

app = typer.Typer(no_args_is_help=True, add_completion=False)

_Home = Annotated[Path, typer.Option(help="the server's folder")]
_Answer = Annotated[float, typer.Option(min=1, help="seconds a node has to answer a request")]
_Node = Annotated[float, typer.Option(min=0, help="seconds to wait for a client whose node is missing")]


@app.callback()
def check() -> None:
    """Train over real sites, connected by Flower."""
    with errors():
        from capfl.engines.flower import check_flower

        check_flower()


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="folder for the keys; existing files stay", metavar="DIR")],
    nodes: Annotated[str, typer.Option(help="client ids: north,south", metavar="NAMES")],
    host: Annotated[
        str, typer.Option(help="names and addresses under which nodes reach the server", metavar="HOSTS")
    ] = "",
) -> None:
    """Make the server's certificate and a key for each node."""
    with errors():
        from capfl.engines.flower.keys import make_keys

        made = make_keys(folder, _words(nodes), _words(host))
        for path in made:
            typer.echo(path)
        if not made:
            typer.echo(f"{folder} already has all of them")


@app.command()
def server(
    keys: Annotated[Path, typer.Option(help="folder of `capfl flower keys`", metavar="DIR")],
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for other machines")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8443,
    home: _Home = STATE / "server",
) -> None:
    """Run the server that connects nodes and runs, until Ctrl-C or SIGTERM."""
    with errors():
        from capfl.engines.flower.server import run_server

        run_server(home.absolute(), host, port, keys.absolute(), typer.echo)


_Server = Annotated[str, typer.Option(help="address of the server", metavar="HOST:PORT")]
_Client = Annotated[str, typer.Option(help="this node's client: the name of its key")]
_Data = Annotated[Path, typer.Option(help="the client's own data", metavar="FILE")]
_Certificate = Annotated[Path, typer.Option(help="server.crt of `capfl flower keys`", metavar="FILE")]
_Key = Annotated[Path, typer.Option(help="nodes/CLIENT.key of `capfl flower keys`", metavar="FILE")]
_State = Annotated[Path | None, typer.Option(help="folder for the node's state and adapters")]
_Peers = Annotated[
    Path | None,
    typer.Option(help="folder of all nodes' public keys (CLIENT.pub), for secure aggregation", metavar="DIR"),
]
_Runs = Annotated[
    list[str] | None,
    typer.Option(
        "--run",
        help="take part in this run: NAME of --out runs/NAME, or the name that the run shows; may be repeated. "
        "By default all runs of the server, except those with malicious-server",
        metavar="NAME",
    ),
]

_MaxEpsilon = Annotated[
    float | None,
    typer.Option(
        help="limit on the total epsilon of this site's items, over all runs; the node then trains only in runs with "
        "privacy.protects = items",
        metavar="EPSILON",
    ),
]


@app.command()
def doctor(
    server: _Server,
    client: _Client,
    data: _Data,
    certificate: _Certificate,
    key: _Key,
    state: _State = None,
    peers: _Peers = None,
    runs: _Runs = None,
    max_epsilon: _MaxEpsilon = None,
    sets: Sets = None,
) -> None:
    """Check whether a site can join. Takes the same options as `node`, and starts nothing."""
    with errors():
        from capfl.engines.flower.doctor import examine
        from capfl.engines.flower.setup import Setup

        place, failed = state or STATE / "nodes" / client, False
        setup = Setup(client, server, data, place, certificate, key, peers, runs or (), max_epsilon, _own(sets or ()))
        for one in examine(setup):
            said = printable(one.said).replace("\n", f"\n{'':8}")
            typer.echo(f"{one.kind:8}{one.what}: {said}")
            failed |= one.kind == "failed"
    if failed:
        raise typer.Exit(1)


@app.command()
def node(
    server: _Server,
    client: _Client,
    data: _Data,
    certificate: _Certificate,
    key: _Key,
    state: _State = None,
    peers: _Peers = None,
    runs: _Runs = None,
    max_epsilon: _MaxEpsilon = None,
    sets: Sets = None,
) -> None:
    """Run a site's node until Ctrl-C or SIGTERM.

    `--set` takes `runtime.*`, `model.path`, `model.device` and `data.columns`.
    """
    with errors():
        from capfl.engines.flower.node import run_node
        from capfl.engines.flower.setup import Setup

        place = state or STATE / "nodes" / client
        setup = Setup(client, server, data, place, certificate, key, peers, runs or (), max_epsilon, _own(sets or ()))
        run_node(setup, typer.echo)


@app.command(context_settings=FLAGS, cls=ConfigCommand)
def run(
    context: typer.Context,
    config: ConfigFile = None,
    sets: Sets = None,
    resume: Annotated[Path | None, typer.Option(help="continue the run in this folder", metavar="RUN")] = None,
    home: _Home = STATE / "server",
    answer: _Answer = 1800,
    node: _Node = 120,
) -> None:
    """Start a run over the nodes of this machine's server, and show its output until it ends or Ctrl-C.

    Takes the options of `capfl run`. Each file in data.sets is one client's; only its name matters.
    """
    with errors(go_on="capfl flower run --resume RUN_FOLDER"):
        given = _given(context, config, sets, resume)

        from capfl.config.methods import check_method, check_peers
        from capfl.data import clients_of
        from capfl.engines.flower.names import check_client
        from capfl.engines.flower.runs import Connection, follow, stop, submit
        from capfl.model.place import check_base

        check_method(given.method)
        check_base(given.model.path)
        clients = clients_of(given.data, given.partition)
        check_peers(given.method, clients)
        for client in clients:
            check_client(client, "data.sets")
        server, number = Connection(home.absolute()), None
        server.require()

        from capfl.experiment import check_remote

        check_remote(given, sorted(clients))
        try:
            with interruptible():
                number = submit(server, given, resume is not None, answer, node)
                typer.echo(f"run {number} in {given.out}")
                succeeded = follow(server, number, typer.echo)
        except Interrupted as signal:
            signal.said = f"interrupted; continue with: capfl flower run --resume {given.out}"
            if number is not None:
                stop(server, number)
            raise
    if not succeeded:
        typer.echo(f"fix this, then continue with: capfl flower run --resume {given.out}", err=True)
        raise typer.Exit(1)


def _given(context: typer.Context, config: Path | None, sets: list[str] | None, resume: Path | None) -> Config:
    """The config of a run that is to be started or gone on with, with its folder as an absolute path."""
    if resume is not None and (config or sets or context.args):
        raise ConfigError("--resume takes the config that the run was started with; leave out everything else")
    given = config_of(resume) if resume else load_given(context, config, sets)
    return given.model_copy(update={"out": str((resume or free_folder(given)).absolute())})


def _own(sets: Sequence[str]) -> dict[str, str]:
    """What a site may decide for itself, from `--set KEY=VALUE`."""
    own = dict(pair.partition("=")[::2] for pair in sets)
    for key in own:
        if not key.startswith("runtime.") and key not in ("model.path", "model.device", "data.columns"):
            raise ConfigError(
                f"--set {key}: only the run's config sets this; a site may set runtime.*, model.path, model.device and "
                "data.columns"
            )
    load_command(None, sets, [])
    return own


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]

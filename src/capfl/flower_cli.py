"""The commands of the network: `capfl flower ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from platformdirs import user_state_path
from rich.console import Console

from capfl.config import Config
from capfl.config.load import load_command
from capfl.errors import ConfigError
from capfl.terminal import FLAGS, ConfigFile, Sets, errors, load_given

if TYPE_CHECKING:
    from capfl.engines.flower.runs import Connection

app = typer.Typer(help="Run over sites of their own, with Flower.", no_args_is_help=True, add_completion=False)

_Number = Annotated[int, typer.Argument(help="of the run, as `capfl flower run` gave it", metavar="RUN")]
_Home = Annotated[Path | None, typer.Option(help="the server's folder; by default in the user's state folder")]
_Answer = Annotated[float, typer.Option(min=1, help="seconds that a node has to answer a request")]
_Node = Annotated[float, typer.Option(min=0, help="seconds for which a client whose node is missing is waited for")]


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="where they go; what is there already stays", metavar="DIR")],
    nodes: Annotated[str, typer.Option(help="client ids: north,south", metavar="NAMES")],
    host: Annotated[
        str, typer.Option(help="names and addresses by which nodes reach the server", metavar="HOSTS")
    ] = "",
    days: Annotated[int, typer.Option(min=1, help="for which the server's certificate is valid")] = 730,
) -> None:
    """Make the authority, the server's certificate and a key for each node."""
    with errors():
        _check()
        from capfl.engines.flower.keys import make_keys

        made = make_keys(folder, _words(nodes), _words(host), days)
        for path in made:
            typer.echo(path)
        if not made:
            typer.echo(f"{folder} has all of them")


@app.command()
def server(
    keys: Annotated[Path, typer.Option(help="folder of `capfl flower keys`", metavar="DIR")],
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for other machines")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8443,
    home: _Home = None,
) -> None:
    """Run the server, where nodes and runs meet, until Ctrl-C or SIGTERM."""
    with errors():
        _check()
        from capfl.engines.flower.server import Server

        Server(_home(home), host, port, keys.absolute()).serve(_say)


@app.command()
def node(
    server: Annotated[str, typer.Option(help="address of the server", metavar="HOST:PORT")],
    client: Annotated[str, typer.Option(help="the client whose node this is, as its key is named")],
    data: Annotated[Path, typer.Option(help="the client's own data", metavar="FILE")],
    ca: Annotated[Path, typer.Option(help="ca.crt of `capfl flower keys`", metavar="FILE")],
    key: Annotated[Path, typer.Option(help="nodes/CLIENT.key of `capfl flower keys`", metavar="FILE")],
    state: Annotated[Path | None, typer.Option(help="folder for what it remembers and for its adapters")] = None,
    sets: Sets = None,
) -> None:
    """Run a site's node until Ctrl-C or SIGTERM. It may `--set` keys of `runtime`, `model.path` and `model.device`."""
    with errors():
        _check()
        from capfl.engines.flower.node import Node

        place = state or user_state_path("capfl") / "nodes" / client
        Node(client, server, data, place, ca, key, _own(sets or [])).serve(_say)


@app.command(context_settings=FLAGS)
def run(
    context: typer.Context,
    config: ConfigFile = None,
    sets: Sets = None,
    resume: Annotated[Path | None, typer.Option(help="go on with the run in this folder", metavar="RUN")] = None,
    home: _Home = None,
    answer: _Answer = 1800,
    node: _Node = 120,
) -> None:
    """Run what `capfl run` runs, over the nodes of the server on this machine. Each of data.sets is a client's own."""
    with errors(go_on="capfl flower run --resume RUN_FOLDER"):
        _check()
        given = _given(context, config, sets, resume)

        from capfl.data import clients_of
        from capfl.engines.flower.runs import submit

        clients_of(given.data, given.partition)
        number = submit(_connection(home), given, resume is not None, answer, node)
        typer.echo(f"run {number} in {given.out}")
        _follow(home, number)


@app.command()
def follow(
    number: _Number,
    home: _Home = None,
) -> None:
    """Say what a run says, from its beginning to its end. The exit code says whether it succeeded."""
    with errors():
        _check()
        _follow(home, number)


@app.command()
def stop(
    number: _Number,
    home: _Home = None,
) -> None:
    """End a run. `capfl flower run --resume` goes on with it."""
    with errors():
        _check()
        from capfl.engines.flower.runs import stop as end

        end(_connection(home), number)


@app.command(context_settings=FLAGS)
def simulate(
    context: typer.Context,
    config: ConfigFile = None,
    sets: Sets = None,
    resume: Annotated[Path | None, typer.Option(help="go on with the run in this folder", metavar="RUN")] = None,
) -> None:
    """Run over virtual nodes in this process, one a client: the network without its sockets, for any partition."""
    with errors(go_on="capfl flower simulate --resume RUN_FOLDER"):
        _check()
        given = _given(context, config, sets, resume)

        from capfl.engines.flower.simulation import simulate as run_simulation
        from capfl.report.progress import progress_of
        from capfl.report.tables import summary_table

        console = Console()
        with progress_of(console) as reporter:
            summary, place = run_simulation(given, resume is not None, reporter)
        console.print(summary_table(summary))
        console.print(f"{summary.seconds:.0f} s; everything is in {place}", highlight=False, soft_wrap=True)


@app.command(context_settings=FLAGS)
def demo(context: typer.Context, sets: Sets = None) -> None:
    """A server and three nodes on this machine, with TLS and keys, and a run over them. Ends by itself."""
    with errors(go_on="the same command"):
        _check()
        from capfl.engines.flower.demo import prepare
        from capfl.engines.flower.demo import run as run_demo

        config, data = prepare(load_command(Path(__file__).parent / "demo.toml", sets or [], list(context.args)))
        if not run_demo(config, data, _say):
            raise typer.Exit(1)


def _given(context: typer.Context, config: Path | None, sets: list[str] | None, resume: Path | None) -> Config:
    """The config of a run that is to be started or gone on with, with its folder as an absolute path."""
    if resume is not None and (config or sets or context.args):
        raise ConfigError("--resume takes the config that the run was started with; leave out everything else")
    given = load_given(context, config, sets)

    from capfl.experiment import config_of, free_folder

    given = config_of(resume) if resume else given
    return given.model_copy(update={"out": str((resume or free_folder(given)).absolute())})


def _follow(home: Path | None, number: int) -> None:
    from capfl.engines.flower.runs import follow

    try:
        succeeded = follow(_connection(home), number, _say)
    except KeyboardInterrupt as error:
        typer.echo(f"the run goes on; capfl flower follow {number}, or capfl flower stop {number}", err=True)
        raise typer.Exit(130) from error
    if not succeeded:
        raise typer.Exit(1)


def _check() -> None:
    from capfl.engines.flower import check_flower

    check_flower()


def _home(home: Path | None) -> Path:
    return (home or user_state_path("capfl") / "server").absolute()


def _connection(home: Path | None) -> Connection:
    from capfl.engines.flower.runs import Connection

    return Connection(_home(home))


def _own(sets: Sequence[str]) -> dict[str, str]:
    """What a site may decide for itself, from `--set KEY=VALUE`."""
    own = dict(pair.partition("=")[::2] for pair in sets)
    for key in own:
        if not key.startswith("runtime.") and key not in ("model.path", "model.device"):
            raise ConfigError(
                f"--set {key}: the run decides that; a site may set runtime.*, model.path and model.device"
            )
    load_command(None, sets, [])
    return own


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _say(text: str) -> None:
    typer.echo(text)
    sys.stdout.flush()

"""The commands that make runs, look at them and compare them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from capfl import __version__
from capfl.checks import checked_data, config_of, planned_clients
from capfl.cli.adapter import app as adapters
from capfl.cli.flower import app as flower
from capfl.cli.terminal import (
    FLAGS,
    ConfigCommand,
    ConfigFile,
    Sets,
    errors,
    first_steps,
    indented,
    key_list,
    load_given,
    screen,
)
from capfl.config import Config
from capfl.config.load import load_command
from capfl.config.methods import check_method, listed
from capfl.errors import ConfigError
from capfl.interruption import Interrupted, interruptible
from capfl.model.place import check_base

app = typer.Typer(
    help="Personalised federated fine-tuning of language models.", add_completion=False,
    pretty_exceptions_show_locals=False,
)  # fmt: skip

START, RESULTS, WORDS, NETWORK = "Run", "Look at runs", "Look things up", "Over a network"
_Tracker = Annotated[
    str | None, typer.Option(metavar="NAME", help="also send the run's numbers to tensorboard, mlflow, wandb, ...")
]
_Rows = Annotated[
    Path | None,
    typer.Option(metavar="FILE.py", help="your own methods, for --method; see docs/methods.md"),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"capfl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        screen().print(first_steps(__version__), highlight=False)


@app.command(context_settings=FLAGS, cls=ConfigCommand, rich_help_panel=START)
def run(
    context: typer.Context,
    config: ConfigFile = None,
    sets: Sets = None,
    resume: Annotated[
        Path | None, typer.Option(help="continue an interrupted run; only --tracker and --rows may be added")
    ] = None,
    tracker: _Tracker = None,
    rows: _Rows = None,
) -> None:
    """Train adapters for several clients. All settings are listed below; each is a flag: --rounds 5, --lora-rank 16."""
    with errors():
        if resume is not None and (config or sets or context.args):
            raise ConfigError("--resume takes the config that the run was started with; leave out everything else")
        _run(None if resume else load_given(context, config, sets), resume, tracker, rows)


@app.command(context_settings=FLAGS, cls=ConfigCommand, rich_help_panel=START)
def demo(context: typer.Context, sets: Sets = None, tracker: _Tracker = None) -> None:
    """Try a run: SmolLM2-135M at four built-in help desks with different labels. A few minutes on two cores."""
    with errors():
        _run(load_command(Path(__file__).parents[1] / "demo.toml", sets or [], list(context.args)), None, tracker, None)


@app.command(context_settings=FLAGS, cls=ConfigCommand, rich_help_panel=START)
def plan(
    context: typer.Context,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    calibrate: Annotated[bool, typer.Option(help="time a few steps, if the model is on this machine")] = True,
) -> None:
    """Estimate what a run will cost: bytes each way, memory, time. Takes the same options as `capfl run`."""
    with errors():
        given = load_given(context, config, sets)
        check_method(given.method)
        check_base(given.model.path, weights=False)
        clients = planned_clients(given)

        from capfl.plan import make_plan
        from capfl.plan.table import plan_tables

        made = make_plan(given, calibrate, clients)
        if as_json:
            typer.echo(json.dumps(made.to_json(), indent=1))
        else:
            screen().print(plan_tables(made))


@app.command(rich_help_panel=START)
def compare(
    spec: Annotated[Path, typer.Argument(help="TOML file of splits, variants and seeds", metavar="SPEC")],
    out: Annotated[Path | None, typer.Option(help="folder of the runs and tables; by default runs/SPEC")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="data.dir of all runs")] = None,
    model: Annotated[str | None, typer.Option(help="model.path of all runs, instead of the spec's")] = None,
    splits: Annotated[str | None, typer.Option(help="only these splits: NAME,NAME", metavar="NAMES")] = None,
    only: Annotated[str | None, typer.Option(help="only these variants: NAME,NAME", metavar="NAMES")] = None,
    seeds: Annotated[str | None, typer.Option(help="instead of the spec's: 0,1,2", metavar="SEEDS")] = None,
    processes: Annotated[int, typer.Option(min=1, help="runs at once; divide the cores by runtime.threads")] = 1,
    show: Annotated[bool, typer.Option("--show", help="print the table of finished runs and run nothing")] = False,
) -> None:
    """Compare methods or settings over splits and seeds, in one table. Start it again to continue."""
    from capfl.compare import folder
    from capfl.compare.spec import make_plan

    def say(said: str | folder.Found) -> None:
        if sys.stdout.isatty() and not isinstance(said, str):
            screen().print(said, highlight=False)
        else:
            typer.echo(said, nl=isinstance(said, str))  # a table ends its line itself

    with errors(go_on="the same command"):
        if wrong := [word for word in _words(seeds) or [] if not word.isdecimal()]:
            raise ConfigError(f"--seeds {seeds}: {wrong[0]!r} is not a whole number; write seeds as 0,1,2")
        numbers = [int(word) for word in _words(seeds) or []]
        plan = make_plan(spec, _words(splits), _words(only), numbers, data_dir, model)
        place = out or Path("runs") / spec.stem
        if show:
            say(folder.table(plan, place))
        elif failed := folder.compare(plan, place, processes, sys.argv[1:], say):
            typer.echo(f"{len(failed)} runs failed; their .log files in {place} say why", err=True)
            raise typer.Exit(1)


@app.command(rich_help_panel=RESULTS)
def report(
    run: Annotated[Path, typer.Argument(help="folder of a run", metavar="RUN")],
    out: Annotated[Path | None, typer.Option(help="file to write; by default report.html in the run's folder")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="write it again after each round of a running run")] = False,
) -> None:
    """Write an HTML report of a run, in one file: scores of each client, groups, bytes and the config."""
    from capfl.report.live import watch as follow
    from capfl.report.page import write_page

    place = out or run / "report.html"
    with errors(go_on="the same command"):
        typer.echo(follow(run, place, typer.echo) if watch else write_page(run, place))


@app.command(name="bytes", rich_help_panel=RESULTS)
def count_bytes(run: Annotated[Path, typer.Argument(help="folder of a finished run", metavar="RUN")]) -> None:
    """Count the bytes that each client sent and received in a run, by part of the messages."""
    from capfl.report.summary import read_summary
    from capfl.report.tables import bytes_table

    with errors():
        summary = read_summary(run)
        for direction in ("up", "down"):
            screen().print(bytes_table(summary, direction), "")


app.add_typer(adapters)


@app.command(rich_help_panel=WORDS)
def methods() -> None:
    """List the methods: what each does, what clients send, and who learns with whom."""
    for row in listed():
        (_, name), *parts = row.items()
        screen().print(f"[bold]{name}[/]", *(indented(2, f"{part}: {text}") for part, text in parts if text), sep="\n")


@app.command(rich_help_panel=WORDS)
def keys() -> None:
    """List all settings: key, default, shortest flag and meaning."""
    screen().print(key_list())


@app.command(rich_help_panel=WORDS)
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False) -> None:
    """Check this machine: versions, devices, threads, memory, models, and what will be slow and why."""
    from capfl.doctor import examine, lines

    checkup = examine()
    if as_json:
        typer.echo(json.dumps(checkup.to_json(), indent=1))
    else:
        for style, text in lines(checkup):
            screen().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
    if checkup.is_broken:
        raise typer.Exit(1)


app.add_typer(flower, name="flower", rich_help_panel=NETWORK)


def _words(text: str | None) -> list[str] | None:
    return [word.strip() for word in text.split(",") if word.strip()] if text else None


@interruptible()
def _run(config: Config | None, resumed: Path | None, tracker: str | None, rows: Path | None) -> None:
    dealt = checked_data(config, any_method=rows is not None) if config is not None else None
    if resumed is not None:
        config_of(resumed)

    from capfl.compare.rows import load_rows
    from capfl.engines.serial import serial
    from capfl.experiment import resume, run
    from capfl.report.findings import findings, in_short, verdicts
    from capfl.report.progress import Callbacks, Place, progress_of, tracebacks
    from capfl.report.tables import summary_table
    from capfl.report.tracker import tracking

    console = screen()
    more: dict[str, Any] = {"methods": load_rows(rows)} if rows else {}
    place = Place()
    try:
        with tracebacks(place), progress_of(console) as progress, tracking(tracker) as tracked:
            callbacks = Callbacks([place, progress, *tracked])
            if resumed is not None:
                place.path = resumed
                summary, path = resume(resumed, serial, callbacks, **more)
            else:
                assert config is not None
                summary, path = run(config, serial, callbacks, data=dealt, **more)
    except Interrupted as signal:
        signal.said = place.said(f" --rows {rows}" if rows else "")
        raise
    console.print(summary_table(summary, [*verdicts(summary), *findings(summary), in_short(summary)]), highlight=False)
    console.print(f"{summary.seconds:.0f} s; all files are in {path}", highlight=False, soft_wrap=True)

"""The command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from capfl import __version__
from capfl.config import Config
from capfl.config.load import load_command
from capfl.errors import ConfigError
from capfl.flower_cli import app as flower
from capfl.terminal import (
    FLAGS,
    AnswerCommand,
    AnswerRowsCommand,
    ConfigCommand,
    ConfigFile,
    ModelCommand,
    Sets,
    errors,
    indented,
    key_list,
    load_given,
    load_own,
    typed_lines,
)

app = typer.Typer(
    help="Personalised federated fine-tuning of language models.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_show_locals=False,
)  # fmt: skip
app.add_typer(flower, name="flower")

METHOD_LIST = Path(__file__).parent / "methods" / "list.json"
"""What ``capfl.methods.describe`` says, so that torch is not loaded for it. A test compares the two."""

_Tracker = Annotated[
    str | None, typer.Option(metavar="NAME", help="send its numbers to tensorboard, mlflow, wandb, trackio, ..., too")
]
_Rows = Annotated[
    Path | None,
    typer.Option(metavar="FILE.py", help="methods of your own, which --method may name; see docs/methods.md"),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"capfl {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="say the version and end")
    ] = False,
) -> None:
    pass


@app.command(context_settings=FLAGS, cls=ConfigCommand)
def run(
    context: typer.Context,
    config: ConfigFile = None,
    sets: Sets = None,
    resume: Annotated[
        Path | None, typer.Option(help="go on with an interrupted run; takes --tracker and --rows, and no other option")
    ] = None,
    tracker: _Tracker = None,
    rows: _Rows = None,
) -> None:
    """Run an experiment. Every key of a config is also a flag, as listed below: --rounds 5, --lora-rank 16."""
    with errors():
        if resume is not None and (config or sets or context.args):
            raise ConfigError("--resume takes the config that the run was started with; leave out everything else")
        _run(None if resume else load_given(context, config, sets), resume, tracker, rows)


@app.command(context_settings=FLAGS, cls=ConfigCommand)
def demo(context: typer.Context, sets: Sets = None, tracker: _Tracker = None) -> None:
    """SmolLM2-135M at four help desks that route by code books of their own. A few minutes on two cores."""
    with errors():
        _run(load_command(Path(__file__).parent / "demo.toml", sets or [], list(context.args)), None, tracker, None)


@app.command(name="eval", context_settings=FLAGS, cls=ConfigCommand)
def evaluate(
    context: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="folder of a PEFT adapter, of a run or from elsewhere")],
    only: Annotated[list[str] | None, typer.Option(metavar="FIELD=VALUE", help="score items with this field")] = None,
    sets: Sets = None,
) -> None:
    """Score any LoRA adapter: capfl eval runs/x/adapters/global --data clinc150 --data-dir DIR --split validation."""
    with errors():
        config = load_command(None, sets or [], list(context.args))  # what is wrong is said before torch is loaded

        from capfl.scoring import score_adapter

        result = score_adapter(adapter, config, only or [])
        Console().print_json(data=result)


_Adapter = Annotated[
    Path, typer.Argument(help="folder of a PEFT adapter, of a run or from elsewhere", metavar="ADAPTER")
]
_Tokens = Annotated[int, typer.Option(min=1, metavar="N", help="tokens at which an answer is cut")]
_Temperature = Annotated[
    float, typer.Option(min=0, metavar="T", help="0 takes the likeliest token; above that tokens are drawn, by --seed")
]
_TopP = Annotated[
    float, typer.Option(metavar="P", help="draw from the likeliest tokens with this probability together")
]
_Base = Annotated[bool, typer.Option("--base", help="answer without the adapter")]


@app.command(context_settings=FLAGS, cls=AnswerRowsCommand)
def generate(
    context: typer.Context,
    adapter: _Adapter,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="a prompt; may be given again")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="each prompt is a user's message, for the chat template")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="rows with a prompt or messages, as in training")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="where the rows of --data go, with answers")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file of --out")] = False,
    base: _Base = False,
    max_new_tokens: _Tokens = 256,
    temperature: _Temperature = 0.0,
    top_p: _TopP = 1.0,
    sets: Sets = None,
) -> None:
    """Answer with an adapter: capfl generate ADAPTER --prompt TEXT, or --data rows.jsonl --out answers.jsonl."""
    from capfl.answers import answer_file
    from capfl.scoring import open_adapter

    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "base": base,
    }  # fmt: skip
    with errors(go_on="the same command"):
        if bool(prompt) == bool(data) or bool(data) != bool(out) or (data and chat):
            raise ConfigError(
                "give --prompt TEXT, with --chat if it is a user's message, or --data FILE and --out FILE"
            )
        config = load_own(context, sets)
        if data and out:
            count = answer_file(adapter, config, data, out, overwrite=overwrite, **settings)
            typer.echo(f"{count} rows with answers are in {out}")
            return
        rows = [
            {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text} for text in prompt or []
        ]
        for answer in open_adapter(adapter, config).generate(rows, seed=config.seed, **settings):
            typer.echo(answer)


@app.command(context_settings=FLAGS, cls=AnswerCommand)
def chat(
    context: typer.Context,
    adapter: _Adapter,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="a system message to begin with")] = None,
    base: _Base = False,
    max_new_tokens: _Tokens = 256,
    temperature: _Temperature = 0.0,
    top_p: _TopP = 1.0,
    sets: Sets = None,
) -> None:
    """Chat with an adapter, a line a message. /reset begins anew, /exit ends; so does the end of the input."""
    from capfl.answers import converse
    from capfl.scoring import open_adapter

    def say(text: str) -> None:
        typer.echo(text, nl=False)

    with errors(go_on="the same command"):
        config = load_own(context, sets)
        loaded = open_adapter(adapter, config)
        converse(
            loaded, typed_lines(), say, system=system, seed=config.seed, base=base, max_new_tokens=max_new_tokens,
            temperature=temperature, top_p=top_p,
        )  # fmt: skip


@app.command(context_settings=FLAGS, cls=ModelCommand)
def export(
    context: typer.Context,
    adapter: _Adapter,
    merged: Annotated[Path | None, typer.Option(metavar="FOLDER", help="a model for transformers, vLLM, ...")] = None,
    gguf: Annotated[Path | None, typer.Option(metavar="FILE", help="a LoRA file for llama.cpp and Ollama")] = None,
    sets: Sets = None,
) -> None:
    """Write an adapter for other programs: merged into its base, or as a GGUF file beside a base in GGUF."""
    from capfl.model.gguf_file import save_gguf
    from capfl.model.merged import save_merged

    with errors(go_on="the same command"):
        if not merged and not gguf:
            raise ConfigError("give --merged FOLDER, --gguf FILE, or both")
        model = load_own(context, sets).model
        for out, save in ((gguf, save_gguf), (merged, save_merged)):
            if out:
                save(adapter, model, out)
                typer.echo(out)


@app.command()
def personalize(
    run: Annotated[Path, typer.Option(help="folder of a finished run", metavar="DIR")],
    data: Annotated[list[str], typer.Option(help="the newcomer's data: a data set or a file of rows", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="folder for the adapter, in PEFT's format", metavar="FOLDER")],
    name: Annotated[str, typer.Option(help="what the newcomer is called")] = "newcomer",
) -> None:
    """Give a client that never trained an adapter of its own rank, from what its data are like alone."""
    from capfl.newcomer import personalize as welcome

    with errors():
        Console().print_json(data=welcome(run, data, out, name).to_json())


@app.command(context_settings=FLAGS, cls=ConfigCommand)
def plan(
    context: typer.Context,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    calibrate: Annotated[bool, typer.Option(help="load the model and time a few steps, if it is here")] = True,
) -> None:
    """Say what a run will cost before it runs: bytes each way, memory, time. Takes what `capfl run` takes."""
    with errors():
        given = load_given(context, config, sets)

        from capfl.plan import make_plan
        from capfl.plan.table import plan_tables

        made = make_plan(given, calibrate)
        if as_json:
            typer.echo(json.dumps(made.to_json(), indent=1))
        else:
            Console().print(plan_tables(made))


@app.command()
def compare(
    spec: Annotated[Path, typer.Argument(help="TOML file of splits, variants and seeds", metavar="SPEC")],
    out: Annotated[Path | None, typer.Option(help="folder of the runs and tables; by default runs/SPEC")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="data.dir of all runs")] = None,
    model: Annotated[str | None, typer.Option(help="model.path of all runs, in place of the spec's")] = None,
    splits: Annotated[str | None, typer.Option(help="these alone: NAME,NAME", metavar="NAMES")] = None,
    only: Annotated[str | None, typer.Option(help="these variants alone: NAME,NAME", metavar="NAMES")] = None,
    seeds: Annotated[str | None, typer.Option(help="in place of the spec's: 0,1,2", metavar="SEEDS")] = None,
    processes: Annotated[int, typer.Option(min=1, help="runs at once; give each its threads in the spec")] = 1,
    show: Annotated[bool, typer.Option("--show", help="print the table of what is finished and run nothing")] = False,
) -> None:
    """Run variants on splits with seeds beside each other and set up their table. Goes on where it stopped."""
    from capfl.compare import folder
    from capfl.compare.spec import make_plan

    with errors(go_on="the same command"):
        if wrong := [word for word in _words(seeds) or [] if not word.isdecimal()]:
            raise ConfigError(f"--seeds {seeds}: {wrong[0]!r} is no whole number; write them as 0,1,2")
        numbers = [int(word) for word in _words(seeds) or []]
        plan = make_plan(spec, _words(splits), _words(only), numbers, data_dir, model)
        place = out or Path("runs") / spec.stem
        if show:
            typer.echo(folder.table(plan, place), nl=False)
        elif failed := folder.compare(plan, place, processes, sys.argv[1:], typer.echo):
            typer.echo(f"{len(failed)} runs failed; what they said is in their .log files in {place}", err=True)
            raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="folder of a finished run", metavar="RUN")],
    out: Annotated[Path | None, typer.Option(help="the page; by default report.html in the folder")] = None,
) -> None:
    """Write one HTML page that needs nothing else: what came out, for whom, at what cost, and how it was made."""
    from capfl.report.page import write_page

    with errors():
        typer.echo(write_page(run, out or run / "report.html"))


@app.command(name="bytes")
def count_bytes(run: Annotated[Path, typer.Argument(help="folder of a finished run", metavar="RUN")]) -> None:
    """Say what left each site of a run and what came back, to the byte, and what it was made of."""
    from capfl.report.summary import read_summary
    from capfl.report.tables import bytes_table

    with errors():
        summary = read_summary(run)
        for direction in ("up", "down"):
            Console().print(bytes_table(summary, direction), "")


@app.command()
def methods() -> None:
    """List the methods: what each does, what travels, who learns with whom."""
    for row in json.loads(METHOD_LIST.read_text(encoding="utf-8")):
        (_, name), *parts = row.items()
        Console().print(f"[bold]{name}[/]", *(indented(2, f"{part}: {text}") for part, text in parts if text), sep="\n")


@app.command()
def keys() -> None:
    """List every key of a config with its default, its shortest flag and its meaning."""
    Console().print(key_list())


def _words(text: str | None) -> list[str] | None:
    return [word.strip() for word in text.split(",") if word.strip()] if text else None


def _run(config: Config | None, resumed: Path | None, tracker: str | None, rows: Path | None) -> None:
    from capfl.compare.rows import load_rows
    from capfl.engines.serial import serial
    from capfl.experiment import resume, run
    from capfl.report.progress import Callbacks, progress_of
    from capfl.report.tables import summary_table
    from capfl.report.tracker import tracking

    console = Console()
    more: dict[str, Any] = {"methods": load_rows(rows)} if rows else {}
    with progress_of(console) as progress, tracking(tracker) as tracked:
        callbacks = Callbacks([progress, *tracked])
        if resumed is not None:
            summary, path = resume(resumed, serial, callbacks, **more)
        else:
            assert config is not None
            summary, path = run(config, serial, callbacks, **more)
    console.print(summary_table(summary), highlight=False)
    console.print(f"{summary.seconds:.0f} s; everything is in {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()

"""The commands that use an adapter: score it, let it answer, write it for other programs, give one to a newcomer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from capfl.checks import config_of
from capfl.cli.terminal import (
    FLAGS,
    AnswerCommand,
    AnswerRowsCommand,
    ConfigCommand,
    ModelCommand,
    RowsCommand,
    Sets,
    errors,
    load_own,
    screen,
    shown,
    typed_lines,
)
from capfl.config.load import load_command
from capfl.data.load import check_sets
from capfl.data.paths import require
from capfl.errors import ConfigError, printable
from capfl.model.place import check_adapter

app = typer.Typer()
PANEL = "Use an adapter"


@app.command(name="eval", context_settings=FLAGS, cls=ConfigCommand, rich_help_panel=PANEL)
def evaluate(
    context: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="folder of a PEFT adapter")],
    only: Annotated[list[str] | None, typer.Option(metavar="FIELD=VALUE", help="score only these items")] = None,
    sets: Sets = None,
) -> None:
    """Score a LoRA adapter: capfl eval runs/x/adapters/global --data clinc150 --data-dir DIR --split validation."""
    with errors():
        config = load_command(None, sets or [], list(context.args))
        check_adapter(adapter)
        if "sets" not in config.data.model_fields_set:
            raise ConfigError("--data is missing: give a file of rows, or a data set such as helpdesk, to score on")
        check_sets(config.data)

        from capfl.scoring import score_adapter

        result = score_adapter(adapter, config, only or [])
        screen().print_json(data=result)


_Adapter = Annotated[Path, typer.Argument(help="folder of a PEFT adapter, from a run or elsewhere", metavar="ADAPTER")]
_Tokens = Annotated[int, typer.Option(min=1, metavar="N", help="most tokens of an answer")]
_Temperature = Annotated[
    float, typer.Option(min=0, metavar="T", help="0 takes the likeliest token; above 0, tokens are drawn by --seed")
]
_TopP = Annotated[
    float, typer.Option(metavar="P", help="draw from the likeliest tokens that together have this probability")
]
_Out = Annotated[Path | None, typer.Option(metavar="FILE", help="file for the rows of --data with their answers")]
_Field = Annotated[str, typer.Option(metavar="NAME", help="field of a row of --data that gets the answer")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the file of --out")]
_Base = Annotated[bool, typer.Option("--base", help="answer without the adapter")]


@app.command(context_settings=FLAGS, cls=AnswerRowsCommand, rich_help_panel=PANEL)
def generate(
    context: typer.Context,
    adapter: _Adapter,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="a prompt; may be repeated")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="treat each prompt as a user's message, in the chat template")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="rows with a prompt or messages, as in training")
    ] = None,
    out: _Out = None,
    overwrite: _Overwrite = False,
    field: _Field = "answer",
    base: _Base = False,
    max_new_tokens: _Tokens = 256,
    temperature: _Temperature = 0.0,
    top_p: _TopP = 1.0,
    sets: Sets = None,
) -> None:
    """Answer with an adapter: capfl generate ADAPTER --prompt TEXT, or --data rows.jsonl --out answers.jsonl."""
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "base": base,
    }  # fmt: skip
    with errors(go_on="the same command"):
        if bool(prompt) == bool(data) or bool(data) != bool(out) or (data and chat):
            raise ConfigError(_prompts_wanted(adapter, bool(prompt), data, out))
        for number, text in enumerate(prompt or [], start=1):
            if not text.strip():
                raise ConfigError(f"--prompt {number} is empty; write a text")
        config = load_own(context, sets)
        check_adapter(adapter)
        if data:
            require(data)

        from capfl.answers import answer_file
        from capfl.scoring import open_adapter

        _say_if_it_chooses(adapter)
        if data and out:
            count = answer_file(adapter, config, data, out, overwrite=overwrite, field=field, **settings)
            typer.echo(f"{count} rows with answers are in {out}")
            return
        rows = [
            {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text} for text in prompt or []
        ]
        for answer in open_adapter(adapter, config).generate(rows, seed=config.seed, **settings):
            typer.echo(shown(answer))


@app.command(context_settings=FLAGS, cls=AnswerRowsCommand, rich_help_panel=PANEL)
def predict(
    context: typer.Context,
    adapter: _Adapter,
    text: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="a text; may be repeated")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="rows with text, or question and choices, as in training")
    ] = None,
    out: _Out = None,
    overwrite: _Overwrite = False,
    field: _Field = "answer",
    sets: Sets = None,
) -> None:
    """Label texts with an adapter: capfl predict ADAPTER --text TEXT, or --data rows.jsonl --out labels.jsonl."""
    with errors(go_on="the same command"):
        if bool(text) == bool(data) or bool(data) != bool(out):
            raise ConfigError(
                "nothing to label; give one of these:\n"
                f"  capfl predict {adapter} --text 'a text'\n"
                f"  capfl predict {adapter} --data rows.jsonl --out labels.jsonl"
            )
        config = load_own(context, sets)
        check_adapter(adapter)
        if data:
            require(data)

        from capfl.answers import predict_file
        from capfl.scoring import open_adapter

        if data and out:
            count = predict_file(adapter, config, data, out, overwrite=overwrite, field=field)
            typer.echo(f"{count} rows with answers are in {out}")
            return
        for label in open_adapter(adapter, config).predict(text or []):
            typer.echo(shown(label))


@app.command(context_settings=FLAGS, cls=AnswerCommand, rich_help_panel=PANEL)
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
    """Chat with an adapter; each line is a message. /reset starts a new chat; /exit or the end of the input ends it."""

    def say(text: str) -> None:
        typer.echo(shown(text), nl=False)

    with errors(go_on="the same command"):
        config = load_own(context, sets)
        check_adapter(adapter)

        from capfl.answers import converse
        from capfl.scoring import open_adapter

        loaded = open_adapter(adapter, config)
        _say_if_it_chooses(adapter)
        converse(
            loaded, typed_lines(), say, system=system, seed=config.seed, base=base, max_new_tokens=max_new_tokens,
            temperature=temperature, top_p=top_p,
        )  # fmt: skip


@app.command(context_settings=FLAGS, cls=ModelCommand, rich_help_panel=PANEL)
def export(
    context: typer.Context,
    adapter: _Adapter,
    merged: Annotated[Path | None, typer.Option(metavar="FOLDER", help="a model for transformers, vLLM, ...")] = None,
    gguf: Annotated[Path | None, typer.Option(metavar="FILE", help="a LoRA file for llama.cpp and Ollama")] = None,
    sets: Sets = None,
) -> None:
    """Write an adapter for other programs: merged into its base, or as a GGUF file."""
    with errors(go_on="the same command"):
        if not merged and not gguf:
            raise ConfigError("give --merged FOLDER, --gguf FILE, or both")
        model = load_own(context, sets).model
        check_adapter(adapter)

        from capfl.model.gguf_file import save_gguf
        from capfl.model.merged import save_merged

        for out, save in ((gguf, save_gguf), (merged, save_merged)):
            if out:
                save(adapter, model, out)
                typer.echo(out)


@app.command(context_settings=FLAGS, cls=RowsCommand, rich_help_panel=PANEL)
def personalize(
    context: typer.Context,
    run: Annotated[Path, typer.Option(help="folder of a finished run", metavar="DIR")],
    data: Annotated[list[str], typer.Option(help="the newcomer's data: a data set or a file of rows", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="folder for the adapter, in PEFT's format", metavar="FOLDER")],
    name: Annotated[str, typer.Option(help="name of the newcomer")] = "newcomer",
    sets: Sets = None,
) -> None:
    """Give an adapter to a client that never trained, from a description of its data. It takes no training."""
    with errors():
        columns = load_own(context, sets).data.columns
        check_sets(config_of(run).data.model_copy(update={"sets": tuple(data)}))

        from capfl.newcomer import personalize as welcome

        screen().print_json(data=welcome(run, data, out, name, columns).to_json())


def _say_if_it_chooses(adapter: Path) -> None:
    """A note that an adapter has learnt labels, so that what it writes means nothing."""
    from capfl.model.card import load_card

    card = load_card(adapter)
    if card and card.labels:
        labels = printable(", ".join(card.labels), 80)
        said = f"this adapter has learnt to choose a label ({labels}), not to write"
        typer.echo(f"note: {said}; use: capfl predict {adapter} --text '...'", err=True)


def _prompts_wanted(adapter: Path, prompt: bool, data: Path | None, out: Path | None) -> str:
    """What is wrong with the prompts of a command line, and how they are given."""
    said = "there is no prompt"
    if prompt and data:
        said = "give prompts by --prompt or by --data, not both"
    elif data and out:
        said = "--data takes no --chat: its rows say whether they are chats"
    elif data:
        said = "--data needs --out, the file for its rows with answers"
    elif out:
        said = "--out is only for the rows of --data"
    return (
        f"{said}; give one of these:\n"
        f"  capfl generate {adapter} --prompt 'a text to continue'\n"
        f'  capfl generate {adapter} --chat --prompt "a user\'s message"\n'
        f"  capfl generate {adapter} --data prompts.jsonl --out answers.jsonl\n"
        f"To chat with it: capfl chat {adapter}"
    )

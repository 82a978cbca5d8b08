"""What a saved adapter answers: to a file of prompts or of texts without labels, and in a chat."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from capfl.config import Config
from capfl.data.asked import read_asked, read_choices
from capfl.data.files import read_rows
from capfl.data.rows import Row
from capfl.errors import ConfigError, DataError
from capfl.files import AGAIN, write_atomically
from capfl.rng import derive
from capfl.scoring import LoadedAdapter, open_adapter

ANSWER = "answer"
_OTHERS = {".csv", ".tsv", ".parquet", ".xlsx", ".gz"}  # names of files of other kinds
EXIT, RESET = "/exit", "/reset"
COMMAND = re.compile(r"/\w+")


def predict_file(
    folder: Path, config: Config, data: Path, out: Path, *, overwrite: bool = False, field: str = ANSWER
) -> int:
    """What `capfl predict --data` does: as ``answer_file``, with the label or option that the adapter chooses.

    Raises:
        As ``answer_file``.
    """
    _check_out(out, overwrite)
    rows = read_rows(data, config.data.split)
    _refuse_answers(rows, field)
    adapter = open_adapter(folder, config)
    own = adapter.data
    _write(out, rows, adapter.predict(read_choices(str(data), rows, own.labels or (), own.columns)), field)
    return len(rows)


def answer_file(
    folder: Path,
    config: Config,
    data: Path,
    out: Path,
    *,
    overwrite: bool = False,
    field: str = ANSWER,
    **settings: Any,
) -> int:
    """What `capfl generate --data` does: the rows of a file, each with its answer, as JSON Lines in another.

    Args:
        data: of any kind that clients' data may have.
        overwrite: replace ``out`` if it is there.
        field: of a row, which the answer goes into.
        settings: of ``LoadedAdapter.generate``; the seed is the config's.

    Returns:
        The number of rows.

    Raises:
        ConfigError: ``out`` is there already, or a setting is outside its range.
        DataError: rows that cannot be used, or prompts that do not fit into the model's positions.
        ModelError: as ``capfl.load``.
        CheckpointError: ``out`` cannot be written.
    """
    _check_out(out, overwrite)
    rows = read_rows(data, config.data.split)
    items = read_asked(str(data), rows, config.data.columns)
    _refuse_answers(rows, field)
    _write(out, rows, open_adapter(folder, config).generate(items, seed=config.seed, **settings), field)
    return len(rows)


def _write(out: Path, rows: Sequence[Row], answers: Sequence[str], field: str) -> None:
    answered = [{**row.values, field: answer} for row, answer in zip(rows, answers, strict=True)]
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in answered)
    write_atomically(out, text.encode(), AGAIN)


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix in _OTHERS:
        raise ConfigError(f"--out: {out}: answers are written as JSON Lines; give a name that ends in .jsonl")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out: {out} exists; choose another file, or replace it with --overwrite")


def _refuse_answers(rows: Iterable[Row], field: str) -> None:
    """Raises DataError: a row has a field of the name that its answer is to have."""
    for row in rows:
        if field in row.values:
            raise DataError(
                f"{row.where}: the model's answer goes into field {field!r}, and the row already has it; "
                "name another one, such as --field generated"
            )


def converse(
    adapter: LoadedAdapter,
    lines: Iterable[str],
    say: Callable[[str], None],
    *,
    system: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> None:
    """A chat: each line is a user's message, and the answer is said as it comes. The model sees all of the chat.

    ``/reset`` begins anew, ``/exit`` and the end of the lines end it; another word behind a slash is no message. A
    message that cannot be answered, as when the
    chat has outgrown the model's positions, is said why, and forgotten.

    Args:
        say: is given text, with line ends where they belong.
        system: a system message, which every chat begins with.
        settings: of ``LoadedAdapter.generate``.

    Raises:
        ConfigError: a setting outside its range.
    """
    start = [{"role": "system", "content": system}] if system else []
    turns = list(start)
    for number, line in enumerate(lines):
        text = line.strip()
        if text == EXIT:
            return
        if text == RESET:
            turns = list(start)
            say("(a new chat)\n")
        elif COMMAND.fullmatch(line.rstrip()):
            say(f"(no command {text}; {RESET} begins a new chat, {EXIT} ends; behind a space it is a message)\n")
        elif text:
            asked = [*turns, {"role": "user", "content": text}]
            own = derive(seed, "turn", number)
            try:
                (answer,) = adapter.generate([{"messages": asked}], seed=own, on_text=say, **settings)
            except DataError as error:
                say(f"({error}; {RESET} begins a new chat)\n")
                continue
            say("\n" if answer.strip() else "(no answer)\n")
            if answer.strip():  # templates and rows know no empty turn
                turns = [*asked, {"role": "assistant", "content": answer}]

"""Your own rows, from a file or from memory, in one of the formats that the first row's keys decide."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from capfl.config.keys import as_flag
from capfl.data import chats, hints
from capfl.data.files import name_of, read_rows
from capfl.data.labels import in_order, refuse_variants
from capfl.data.rows import Row, RowError, held_rows, parse_rows, parsed, shown, text_of
from capfl.errors import DataError
from capfl.types import Item

Values = Mapping[str, Any]
SCALARS = (str, int, float, Decimal, date, time)  # dates and decimals are from Parquet
ANSWER = "give the index, the letter or the text of the right option"


def read_file(
    path: str | Path,
    labels: Sequence[str] = (),
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
) -> list[Item]:
    """All items of one file, or of one folder that ``datasets`` saved.

    Args:
        labels: options of text-and-label rows, in the order of their letters; empty: those of the file, sorted.
        task: what the items have in their field ``task``; by default the file's name without its suffix.
        columns: what the keys of a format are called in the file, where they have other names.
        split: of a saved folder that has several.

    Raises:
        DataError: the file is missing, empty or in no known format, or rows are wrong (all are counted).
    """
    return read_as(str(path), name_of(path) if task is None else task, read_rows(Path(path), split), labels, columns)


def check_file(path: str | Path, columns: Mapping[str, str] | None = None) -> str:
    """Read a file whose run is not known yet, which may say what its columns are called.

    Returns:
        What the run's ``data.columns`` would have to help with; empty: nothing.

    Raises:
        DataError: as ``read_file``, but where another name of a column may help.
    """
    path = Path(path)
    if path.is_dir():
        return ""
    rows = read_rows(path)
    first = next((row for row in rows if not row.fault), rows[0])
    if first.fault or columns or _format_of(first, {}):
        read_as(str(path), name_of(path), rows, (), columns)
        return ""
    return hints.no_format(first.values, {}, [own.keys for own in FORMATS.values()])


def read_held(
    client: str, rows: Iterable[Any], labels: Sequence[str] = (), columns: Mapping[str, str] | None = None
) -> list[Item]:
    """As ``read_file``, of rows in memory. Errors name the client and the number of the row, from 1."""
    place = f"client {client!r}"
    return read_as(place, client, held_rows(place, rows), labels, columns)


def read_as(
    place: str,
    task: str,
    rows: Sequence[Row],
    labels: Sequence[str],
    columns: Mapping[str, str] | None = None,
    mixed: bool = False,
) -> list[Item]:
    """The items of rows. Scalar keys that the format does not use become fields.

    Args:
        mixed: some prompts may be texts and others messages, as where nothing is trained.

    Raises:
        DataError: rows are wrong.
    """
    columns = columns or {}
    first = next((row for row in rows if not row.fault), rows[0])
    name = _format_of(first, columns)
    nowhere = next((own for own in columns.values() if not any(own in row.values for row in rows)), None)
    if (name is None or nowhere) and not first.fault:
        needed = [own.keys for own in FORMATS.values()]
        said = hints.missing(columns, first.values, as_it_is=_format_of(first, {}) is not None)
        said = said or hints.no_format(first.values, columns, needed)
        table = place.lower().removesuffix(".gz").endswith((".csv", ".tsv")) and first.where.endswith(":2")
        if table and "name their columns:" not in said and "did you mean" not in said:
            said += "; if the first line of the file is a row already, put one above it that names the columns"
        raise DataError(f"{first.where}: {said}")

    def parse(row: Row) -> Item:
        format = FORMATS[str(name)]
        values = _values_of(row, str(name), columns, first)
        item = format.parse(values)
        label = item.fields.get("label", "")
        if name == "label" and labels and label not in labels:
            remedy = f"correct it, or add it, at every site: {as_flag('data.labels', [*labels, label])}"
            raise RowError("label", f"is {label!r}, which is none of data.labels", remedy)
        unused = {k: v for k, v in values.items() if k not in (*format.keys, *format.more)}
        if "label" in columns:  # by whose own name data are dealt out, too
            unused[columns["label"]] = values["label"]
        scalars = {k: str(v) for k, v in unused.items() if isinstance(v, SCALARS)}
        return replace(item, fields={"task": task, **scalars, **item.fields}, place=row.where, source=task)

    items = parse_rows(place, rows, _with_columns(parse, columns))
    odd = next((item for item in items if bool(item.messages) != bool(items[0].messages)), None)
    if odd and not mixed:
        are, others = ("messages", "texts") if odd.messages else ("texts", "messages")
        raise DataError(f"{odd.place}: its fields are {are}, and those of {items[0].place} {others}; use one a file")
    return _with_label_set(place, items, labels) if name == "label" else items


def _values_of(row: Row, name: str, columns: Mapping[str, str], first: Row) -> Values:
    """A row with the keys of the format. Raises RowError: it lacks one, or is in another format than the first row."""
    for key, own in columns.items():
        if own not in row.values:
            remedy = f"the row has {', '.join(row.values)}; correct it"
            raise RowError(own, f"is missing, from which data.columns reads {key!r}", remedy)
    values, found, keys = _renamed(row.values, columns), _format_of(row, columns), FORMATS[name].keys
    if found is None and (lacking := [key for key in keys if key not in values]):
        raise RowError(lacking[0], "is missing", f"the row has {', '.join(map(repr, values)) or 'no fields'}")
    if found != name:
        raise RowError(
            " + ".join(keys), f"is not the format of this row, but of {first.where}", "use one format a file"
        )
    return values


def _format_of(row: Row, columns: Mapping[str, str]) -> str | None:
    """The first format whose keys the row has, and which uses all that ``columns`` says.

    Tables have the keys of all their rows in each, so a key with nothing in it counts only where no format fits else.
    """
    found = _renamed(row.values, columns)
    given = {key for key, value in found.items() if value is not None}

    def fits(own: Format, keys: Set[str]) -> bool:
        return keys >= {*own.keys} and {*columns} <= {*own.keys, *own.more}

    return next((name for keys in (given, found.keys()) for name, own in FORMATS.items() if fits(own, keys)), None)


def _renamed(values: Values, columns: Mapping[str, str]) -> Values:
    """A row with the keys that formats have."""
    if not columns:
        return values
    others = {key: value for key, value in values.items() if key not in columns.values()}
    return others | {key: values[column] for key, column in columns.items() if column in values}


def _with_columns(parse: Callable[[Row], Item], columns: Mapping[str, str]) -> Callable[[Row], Item]:
    """``parse`` with errors that name the column, as the user's file has it."""

    def named(row: Row) -> Item:
        try:
            return parse(row)
        except RowError as error:
            key = re.split(r"[\[.]", error.field)[0]
            if key not in columns:
                raise
            raise RowError(columns[key] + error.field[len(key) :], error.problem, error.remedy) from error

    return named


# -- multiple choice -----------------------------------------------------------------------------


def choice(values: Values, stem: str = "question", remedy: str = ANSWER) -> Item:
    """A question and its options: a list of texts, or ``{"text": [...], "label": [...]}`` as on the Hub.

    Args:
        stem: the key of the question.
        remedy: what to do about a row without an answer.

    Raises:
        RowError: the row cannot be used.
    """
    question = text_of(values, stem)
    texts: Any = _list(values.get("choices"))
    labels: Any = []
    if isinstance(texts, Mapping):
        texts, labels = texts.get("text"), texts.get("label", [])
        differ = isinstance(labels, list) and len(set(map(str, labels))) == len(labels)
        if not differ or (labels and isinstance(texts, list) and len(labels) != len(texts)):
            raise RowError("choices", "has labels that do not match its texts", "give each text a label of its own")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError("choices", f"is {shown(values.get('choices'))}", "it must be a list of strings")
    choices = tuple(text.strip() for text in texts)
    if len(choices) < 2:
        raise RowError("choices", f"has {len(choices)} options", "give two or more")
    if "" in choices:
        raise RowError("choices", f"has an empty option ({choices.index('') + 1})", "fill it in or delete it")
    if len(set(choices)) != len(choices) and not labels:  # OpenBookQA has such rows; their labels say which is right
        double = next(text for text in choices if choices.count(text) > 1)
        raise RowError("choices", f"has {double!r:.60} twice", "keep it once")
    field = "answerKey" if "answer" not in values and "answerKey" in values else "answer"
    letters = [str(label) for label in labels] or list(ascii_uppercase[: len(choices)])
    answer = _answer(values.get(field), field, choices, letters, remedy)
    return Item(question, choices, answer, fields={"label": ascii_uppercase[answer] if answer < 26 else str(answer)})


def _list(value: Any) -> Any:
    """Options as they are, or read from a cell of CSV with a JSON list in it."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return parsed(value)
        except ValueError as error:
            raise RowError(
                "choices", f"is no JSON list ({error})", """write it as JSON, such as ["yes", "no"]"""
            ) from error
    return value


def _answer(value: Any, field: str, choices: tuple[str, ...], letters: list[str], remedy: str) -> int:
    """Index of the right option, given as an index from 0, a letter, a label or the option's text."""
    if value is None or value == "":
        raise RowError(field, "holds no answer", remedy)
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(choices):
            return value
        raise RowError(field, f"is {value}", f"an index counts from 0: give 0 to {len(choices) - 1}")
    if not isinstance(value, str):
        raise RowError(field, f"is {shown(value)}", ANSWER)
    text = value.strip()
    found = {names.index(text) for names in (letters, list(choices)) if text in names}
    if not found:
        raise RowError(field, f"is {text!r:.60}, which is no option", f"give one of {', '.join(letters)}, or its text")
    if len(found) > 1:
        raise RowError(field, f"is {text!r}, the letter of one option and the text of another", "give its index")
    return found.pop()


# -- text and label ------------------------------------------------------------------------------


def _label(values: Values) -> Item:
    label = values["label"]
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)  # class numbers are common and read the same as text
    return Item(text_of(values, "text"), listed=False, fields={"label": text_of({"label": label}, "label")})


def _with_label_set(place: str, items: list[Item], given: Sequence[str]) -> list[Item]:
    counts = Counter(item.fields["label"] for item in items)
    labels = tuple(given) or in_order(counts)
    if len(labels) < 2:
        remedy = "give rows of two or more labels, or all labels that there are as data.labels"
        raise DataError(f"{place}: field 'label' is {labels[0]!r} in every row; {remedy}")
    if not given:
        refuse_variants({label: f"{n} rows of {place}" for label, n in counts.items()})
    return [replace(item, choices=labels, answer=labels.index(item.fields["label"])) for item in items]


# -- all of them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A way to write rows: the keys by which it is known, its parser, and the keys that it may have besides."""

    keys: tuple[str, ...]
    parse: Callable[[Values], Item]
    more: tuple[str, ...] = ()


FORMATS = {
    "chat": Format(("messages",), chats.messages, ("system",)),
    "sharegpt": Format(("conversations",), chats.conversation, ("system",)),
    "completion": Format(("prompt", "completion"), chats.completion, ("system",)),
    "alpaca": Format(("instruction", "output"), chats.instruction, ("input", "system", "history")),
    "choice": Format(("question", "choices"), choice, ("answer", "answerKey")),
    "label": Format(("text", "label"), _label),
}
"""In the order in which they are tried."""

"""What to say of rows whose keys no format has: often the columns only have other names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from capfl.config.keys import map_flag
from capfl.errors import printable

SYNONYMS = {  # of the keys of formats, in lower case, the likeliest first
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "prompt": ("question", "query", "instruction", "input", "problem", "request", "source"),
    "completion": ("answer", "response", "output", "target", "solution", "reply", "chosen", "summary"),
    "instruction": ("question", "query"),
    "input": ("context", "passage"),
    "output": ("response", "answer", "completion"),
    "text": ("question", "query", "sentence", "utterance", "review", "content", "body", "message", "document", "input"),
    "label": ("labels", "intent", "category", "class", "sentiment", "topic", "tag", "type", "queue", "target"),
    "question": ("question_stem", "query", "stem"),
    "choices": ("options", "answers"),
    "system": ("system_prompt",),
}

ALPACA = (  # with what it may have, so that no context of an instruction is lost
    ("instruction", "input", "output", "system"),
    ("instruction", "output", "system"),
    ("instruction", "input", "output"),
)
OPTION = re.compile(r"(op|opt|option|choice|answer)?[ _]?([a-d]|[1-4])", re.IGNORECASE)  # a column of one option
PANDAS = "of pandas: frame.to_json(path, orient='records', lines=True)"
_EXAMPLE = "--data.columns prompt=COLUMN,completion=COLUMN"


def no_format(found: Mapping[str, Any], columns: Mapping[str, str], formats: Sequence[Sequence[str]]) -> str:
    """The keys of a row, the keys of all formats, and the ``data.columns`` that would make one fit, if any.

    Args:
        columns: as they are.
        formats: the keys that each needs.
    """
    keys = printable(", ".join(map(str, found))) or "none"
    known = "; ".join(" + ".join(needed) for needed in formats)
    if columns:
        given = map_flag("data.columns", columns)
        needs = f"data.columns must name keys of one format alone: {known}"
        return f"the keys {keys} with {given} are no known format; {needs}"
    said = f"no known format has the keys {keys}; give the rows one of: {known}"
    options = [name for name, text in found.items() if isinstance(text, str) and OPTION.fullmatch(name.strip())]
    if len(options) > 1:
        listed = printable(", ".join(options))
        return f"{said}; if {listed} are options, write them as one list 'choices', beside 'question' and 'answer'"
    fits = [own for needed in (*ALPACA, *formats) if (own := _columns(found, needed))]
    if fits:
        return f"{said}; or name their columns: {map_flag('data.columns', fits[0])}"
    inside = "" if {*found} & {key for needed in formats for key in needed} else rows_inside(found)
    if inside:
        said += f"{inside}, or call it messages if they are a chat" if "that list" in inside else inside
    if list(found) == ["text"]:
        said += "; text alone has no answer to learn: split it into prompt and completion"
    elif not inside and len(found) > 1:
        said += f"; or name their columns, as in {_EXAMPLE}"
    return said


def rows_inside(found: Mapping[str, Any]) -> str:
    """What to do about one object that may have all rows in it; empty: there is none of these."""
    if {"columns", "data"} <= {*found}:  # as pandas writes with orient="split"
        return f"; write one object a row, {PANDAS}"
    lists = [name for name, value in found.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) == 1:
        return f"; if the rows are its {lists[0]!r}, write that list alone"
    if lists:
        return f"; if {' or '.join(map(repr, lists))} are the rows, write one of these lists alone"
    if len(found) > 1 and all(isinstance(value, dict) for value in found.values()):
        return f"; if its values are the rows, write them as a list; {PANDAS}"
    return ""


def missing(columns: Mapping[str, str], found: Mapping[str, Any], as_it_is: bool = False) -> str:
    """Why the first of ``columns`` that a row lacks cannot be read; empty: it has them all.

    Args:
        as_it_is: without ``columns`` the row would be in a format.
    """
    for key, column in columns.items():
        if column not in found:
            said = f"has no {column!r}, from which data.columns reads {key!r}; it has {', '.join(found)}"
            if as_it_is or key in found:
                return f"{said}; data.columns applies to every file of a run: use the same column name in all of them"
            near = get_close_matches(column.lower(), [name.lower() for name in found], n=1)
            hint = "".join(f"; did you mean {name!r}?" for name in found if near and name.lower() == near[0])
            return said + hint
    return ""


def _columns(found: Mapping[str, Any], needed: Sequence[str]) -> dict[str, str]:
    """Which column each needed key may be, of those that are not called like it; empty: not all can be found."""
    taken: dict[str, str] = {}
    for key in needed:
        names = (key, *SYNONYMS.get(key, ()))
        free = {
            name.strip().lower(): name
            for name, value in found.items()
            if name not in taken.values() and (key != "choices" or _can_be_options(value))
        }
        column = next((free[name] for name in names if name in free), None)
        if column is None:
            return {}
        taken[key] = column
    return {key: column for key, column in taken.items() if key != column}


def _can_be_options(value: Any) -> bool:
    """A list of texts, or as on the Hub; a cell of CSV may have either as JSON."""
    texts = value.get("text") if isinstance(value, Mapping) and "label" in value else value
    return isinstance(texts, str) or (isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts))

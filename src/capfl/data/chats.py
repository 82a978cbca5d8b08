"""Rows of text to be written: chats in three spellings, instructions, prompts and completions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from capfl.data.rows import RowError, blank, check_text, parsed, shown, text_of
from capfl.types import Item

Values = Mapping[str, Any]
Messages = tuple[tuple[str, str], ...]
ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SPEAKERS = ROLES | {"human": "user", "gpt": "assistant"}
"""Who speaks in a row of ShareGPT, and what that means."""
TOOLS = ("tool_calls", "function_call", "tool_call_id", "tools", "functions")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
BESIDE = {
    **dict.fromkeys(TOOLS, "calls of tools are not read; delete the row, or write the call into the text"),
    **dict.fromkeys(MEDIA, "only text is read; delete the row, or the key, if the text alone is to be learnt"),
    "chat_template_kwargs": "the chat template gets no settings; delete the key",
}
"""Keys of a row of text that would change what is learnt, and what to do about them."""
UNREAD = BESIDE | dict.fromkeys(
    ("reasoning_content", "reasoning", "thinking"), "it is not read; write it into the content"
)
"""Keys of a message, or of a chat, that would."""
OFF = ("0", "0.0", "false")  # numbers and truth, and cells of CSV with them
NOTHING = ("", "[]", "{}", "null")  # as cells of tables have it
_LIKE_MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")


def completion(values: Values) -> Item:
    """A prompt and its completion: two texts, or two lists of messages of which the second alone is trained on.

    Raises:
        RowError: the row cannot be used, as of all parsers here.
    """
    _refuse_unread(values, "", BESIDE)
    if str(values.get("label")).strip().lower() == "false":  # cells of CSV are texts
        raise RowError(
            "label", f"is {values['label']}, which TRL has for a bad completion", "keep rows of good completions alone"
        )
    prompt, answer = values["prompt"], values["completion"]
    in_cells, answers_in_cells = messages_in(prompt, "prompt"), messages_in(answer, "completion")
    if in_cells and answers_in_cells:
        prompt, answer = in_cells, answers_in_cells
    elif in_cells:
        problem = "has no messages in JSON, as the prompt has"
        raise RowError("completion", problem, "write both as texts or both as messages")
    prompt, answer = listed(prompt), listed(answer)
    if isinstance(prompt, list) and isinstance(answer, list):
        if all(isinstance(text, str) for text in [*prompt, *answer]) and prompt:
            raise RowError("prompt", "is a list of texts", "write one row for each")
        said, answers = _led(values, turns(prompt, "prompt")), turns(answer, "completion")
        if answers[0][0] != "assistant" or answers[-1][0] != "assistant":
            problem = "does not begin and end with a message of the assistant"
            raise RowError("completion", problem, "put what comes before its answer into the prompt")
        return Item("", messages=said + answers[:-1], completion=answers[-1][1], given=len(said))
    _refuse_texts_beside_messages(prompt, answer)
    if not blank(values.get("system")):
        raise RowError("system", "is given beside texts", "write it into the prompt, or write the row as messages")
    for field in ("prompt", "completion"):
        text_of(values, field)  # both must be strings that are not blank ...
    return Item(prompt, completion=answer)  # ... and are kept as they are: their spaces are tokens


def _refuse_texts_beside_messages(prompt: Any, answer: Any) -> None:
    """Raises RowError: one of both is messages, and the other is not, or is one message without its list."""
    for field, value in (("prompt", prompt), ("completion", answer)):
        if isinstance(value, Mapping) and {"role", "from"} & {*value}:
            raise RowError(field, f"is {shown(value)}", "put it in a list, and write prompt and completion as messages")
    chats = [isinstance(value, list) and any(isinstance(one, Mapping) for one in value) for value in (prompt, answer)]
    if any(chats) and isinstance(answer if chats[0] else prompt, str):
        problem = "is a text, and the prompt a list" if chats[0] else "is a list, and the prompt a text"
        raise RowError("completion", problem, "write both as texts or both as messages")


def messages(values: Values) -> Item:
    """A chat of messages with ``role`` and ``content``, and perhaps a text ``system`` beside them."""
    _refuse_unread(values, "")
    return _chat(_led(values, turns(values["messages"], "messages")), "messages")


def conversation(values: Values) -> Item:
    """A chat as ShareGPT has it: messages with ``from`` and ``value``, and perhaps a text ``system`` beside them."""
    _refuse_unread(values, "")
    return _chat(_led(values, turns(values["conversations"], "conversations")), "conversations")


def instruction(values: Values) -> Item:
    """A row as Alpaca has it: the instruction and its input become a user's message, the output its answer."""
    _refuse_unread(values, "", BESIDE)
    if _given(values.get("history")):
        raise RowError("history", "has earlier turns", "write rows with history as messages")
    asked = [text_of(values, "instruction")]
    if not blank(values.get("input")):
        asked.append(text_of(values, "input"))
    said = _led(values, (("user", "\n\n".join(asked)),))
    text_of(values, "output")  # it must be a string that is not blank, and is kept as it is
    return Item("", messages=said, completion=values["output"])


def turns(value: Any, field: str) -> Messages:
    """A list of messages, with ``role`` and ``content`` or ``from`` and ``value``, as pairs of role and text.

    Raises:
        RowError: a message cannot be read, or has more than text.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of CSV
        try:
            value = parsed(value)
        except ValueError as error:
            raise RowError(field, f"is no JSON list ({error})", "write it as JSON") from error
    value = listed(value)
    if isinstance(value, Mapping):  # a table may hold lists of roles and of contents in place of messages
        columns = list(value.values())
        if columns and all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            value = [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if isinstance(value, list) and not value:
        raise RowError(field, "has no messages", "fill it in or delete the row")
    if not isinstance(value, list):
        raise RowError(field, f"is {shown(value)}", "it must be a list of {role, content}")
    return tuple(_turn(message, f"{field}[{number}]") for number, message in enumerate(value))


def listed(value: Any) -> Any:
    """A list in place of a tuple or of an array, which pandas makes of a list in Parquet; all else as it is."""
    return list(value) if isinstance(value, tuple | np.ndarray) else value


def messages_in(value: Any, field: str) -> list[Any]:
    """The messages that a cell of CSV has as JSON; empty: it has none, but is a text.

    Raises:
        RowError: it begins like messages and is no JSON, as where Python has printed them.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return []
    try:
        found = parsed(value)
    except ValueError as error:
        if _LIKE_MESSAGES.match(value):
            remedy = "write the cell with json.dumps, or the rows as JSON Lines"
            raise RowError(field, f"is a list of messages that is no JSON ({error})", remedy) from error
        return []
    spoken = all(isinstance(one, Mapping) and ("role" in one or "from" in one) for one in found)
    return found if spoken else []


def _turn(message: Any, name: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise RowError(name, f"is {shown(message)}", "it must be {role, content}")
    by_speaker = "from" in message and "role" not in message
    who, what, roles = ("from", "value", SPEAKERS) if by_speaker else ("role", "content", ROLES)
    role = message.get(who)
    if not isinstance(role, str) or role not in roles:
        remedy = f"use one of {', '.join(roles)}"
        problem = f"is {shown(role)}" if who in message else "is missing"
        raise RowError(f"{name}.{who}", problem, remedy + ("; tools are not read" if _tools(role) else ""))
    _refuse_unread(message, f"{name}.")
    if what not in message:
        raise RowError(f"{name}.{what}", "is missing", f"the message has {', '.join(map(repr, message))}")
    return roles[role], _content(message.get(what), f"{name}.{what}")


def _tools(role: Any) -> bool:
    return role in ("tool", "function", "function_call", "observation", "ipython")


def _content(value: Any, name: str) -> str:
    """A message's text, given as such or in parts."""
    if isinstance(value, list) and value:
        for number, part in enumerate(value):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise RowError(
                    f"{name}[{number}]", f"is of the type {kind!r:.40}", "only parts of text are read; delete the row"
                )
        value = "".join(part["text"] for part in value)
    check_text(value, name)
    return str(value)


def _refuse_unread(values: Values, prefix: str, keys: Mapping[str, str] = UNREAD) -> None:
    for key, remedy in keys.items():
        if _given(values.get(key)):
            raise RowError(f"{prefix}{key}", "is given", remedy)
    for key in ("weight", "train", "training", "loss") if prefix else ("weight", "train"):
        value = values.get(key)
        if not blank(value) and (str(value).strip().lower() in OFF or (key == "weight" and not _one(value))):
            remedy = "data.assistant_turns says which answers are trained on, all with the same weight; delete the key"
            raise RowError(f"{prefix}{key}", f"is {shown(value)}", remedy)


def _one(value: Any) -> bool:
    """Is this the weight 1, as a number or as a cell of CSV?"""
    return str(value).strip().lower() in ("1", "1.0", "true")


def _given(value: Any) -> bool:
    """Is there something in a key that tables have in all rows?"""
    if isinstance(value, str):
        return value.strip() not in NOTHING
    if isinstance(value, int | float):
        return bool(value) and value == value  # pandas writes nan where nothing is
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)


def _led(values: Values, said: Messages) -> Messages:
    """Messages behind the system message that is beside them, if there is one."""
    if values.get("system") is None or values["system"] == "":
        return said
    lead = text_of(values, "system")
    if said[0][0] != "system":
        return (("system", lead), *said)
    if said[0][1].strip() != lead:
        raise RowError("system", "is given, and the first message is another system message", "keep one of them")
    return said


def _chat(said: Messages, field: str) -> Item:
    if len(said) == 1 and said[0][0] == "assistant":
        raise RowError(field, "has one message", "put a user message before the assistant's")
    if said[-1][0] != "assistant":
        raise RowError(
            field, f"ends with the role {said[-1][0]!r}", "add the assistant's answer, or delete the last message"
        )
    return Item("", messages=said[:-1], completion=said[-1][1])

"""A chat as one text, as the model's own template writes it, and where its answers stand in that text."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from capfl.errors import DataError, ModelError
from capfl.model.text import MARK, special_tokens, starts_with
from capfl.types import Turns

Messages = Sequence[tuple[str, str]]
Span = tuple[int, int]

PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'user' %}User: {{ m['content'] }}\n"
    "{% elif m['role'] == 'assistant' %}Assistant: {{ m['content'] }}{{ eos_token }}\n"
    "{% else %}{{ m['content'] }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The template named ``plain``, of models that have none."""
_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_SYSTEM, _USER = "Kzqx", "Wvjy"  # words that no template writes


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template.

    Attributes:
        text: in Jinja, with the date written in.
        plain: is it ``PLAIN``, for want of one of the model's own?
        has_system: does it write system messages? Otherwise they are put before the first user message.
        parts: does it read a message's content as a list of parts, as some templates of models for images do?
    """

    tokenizer: PreTrainedTokenizerBase
    text: str
    plain: bool
    has_system: bool = True
    parts: bool = False

    def render(self, messages: Messages, asks: bool) -> str:
        """The text of messages; letters of special tokens in them are parted by ``MARK``.

        Args:
            asks: does the text end where the assistant is to answer?

        Raises:
            DataError: the template refuses the messages.
        """
        if any(MARK in text for _, text in messages):
            raise DataError(f"a message has the code point U+{ord(MARK):X}, which is no character; delete it")
        parted = special_tokens(self.tokenizer)
        written = messages if self.has_system else folded(messages)
        given = [(role, parted.sub(lambda m: m[0][0] + MARK + m[0][1:], text)) for role, text in written]
        chat = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.parts else text} for role, text in given
        ]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=asks, chat_template=self.text
                )
            )
        except Exception as error:  # templates raise whatever their author chose, also on an order of roles
            roles = ", ".join(role for role, _ in messages)
            broken = type(error).__name__ == "TemplateSyntaxError"  # of Jinja
            remedy = (
                "it is not Jinja; mend chat_template in its tokenizer_config.json"
                if broken
                else "order them as it wants"
            )
            raise DataError(
                f"the model's chat template refuses messages with roles {roles}: {error}; {remedy}"
            ) from error

    def check(self, messages: Messages, whole: str) -> None:
        """Raises DataError: ``whole`` leaves out what a system or user says in messages."""
        for number, (role, text) in enumerate(messages, start=1):
            if role != "assistant" and not _is_in(whole.replace(MARK, ""), text):
                raise DataError(
                    f"the model's chat template leaves out message {number}, of the role {role}: {text!r:.60}; write "
                    "it into another message, or delete it"
                )


def template_of(tokenizer: PreTrainedTokenizerBase, date: str | None = None) -> Template:
    """The chat template of a tokenizer, or the plain one.

    Args:
        date: as 2026-11-29, for templates that write today's; None: today's.

    Raises:
        ModelError: the template writes the date in a way in which no other can be given to it.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    return _template(tokenizer, own, date or datetime.date.today().isoformat())


@lru_cache(maxsize=8)
def _template(tokenizer: PreTrainedTokenizerBase, own: str | None, date: str) -> Template:
    if not own:
        begins = bool(starts_with(tokenizer))
        return Template(tokenizer, ("{{ bos_token }}" if begins else "") + PLAIN, plain=True)
    text = _NOW.sub(lambda call: repr(datetime.date.fromisoformat(date).strftime(call[2])), own)
    if re.search(r"strftime_now\s*\(", text):
        raise ModelError(
            "the model's chat template writes today's date in a way that cannot be repeated tomorrow; set "
            "chat_template in its tokenizer_config.json to one with a fixed date"
        )
    whole, in_parts = (Template(tokenizer, text, plain=False, parts=parts) for parts in (False, True))
    template = in_parts if _takes(in_parts, [("user", _USER)]) and not _takes(whole, [("user", _USER)]) else whole
    return replace(template, has_system=_takes(template, [("system", _SYSTEM), ("user", _USER)]))


def _takes(template: Template, messages: Messages) -> bool:
    """Does a template write all of these messages?"""
    try:
        template.check(messages, template.render(messages, asks=True))
    except DataError:
        return False
    return True


def _is_in(whole: str, text: str) -> bool:
    """Has a template written a message's text, perhaps with other spaces, or as JSON?"""
    if text.strip() in whole or json.dumps(text, ensure_ascii=False)[1:-1] in whole:
        return True
    return "".join(text.split()) in "".join(whole.split())


def folded(messages: Messages) -> Messages:
    """The system messages at the start as the beginning of the first user message.

    Raises:
        DataError: there is no user message.
    """
    n_system = next((i for i, (role, _) in enumerate(messages) if role != "system"), len(messages))
    if not n_system:
        return messages
    at = next((i for i, (role, _) in enumerate(messages) if role == "user"), None)
    if at is None:
        raise DataError("the model's chat template has no system role, and there is no user message to put it before")
    said = "\n\n".join(text for _, text in [*messages[:n_system], messages[at]])
    return [*messages[n_system:at], ("user", said), *messages[at + 1 :]]


def spans(template: Template, messages: Messages, given: int, turns: Turns) -> tuple[str, list[Span]]:
    """The text of a chat, and where the answers that are trained on begin and end in it, with what ends them.

    An answer begins where the text ends by which it will be asked for. That text has to be the beginning of the whole,
    or the model would be trained after another prompt than the one that it is given later.

    Args:
        messages: the last is an answer of the assistant.
        given: messages at the start that are not trained on.
        turns: all further answers, or the last alone.

    Raises:
        DataError: the template writes what comes before an answer otherwise than when it asks for it, or leaves out a
            message.
    """
    whole, last = template.render(messages, asks=False), len(messages) - 1
    users = [i for i, (role, _) in enumerate(messages) if role == "user"]
    first = last if turns == "last" else max(given, min(users, default=last))
    found: list[Span] = []
    for i in [i for i in range(first, last) if messages[i][0] == "assistant"] + [last]:
        before = template.render(messages[:i], asks=True)
        through = whole if i == last else template.render(messages[: i + 1], asks=False)
        end = _end(through, whole, template.tokenizer.eos_token)
        if not (whole.startswith(before) and len(before) < end):
            raise DataError(_refusal(template, messages, i, before, through, whole))
        found.append((len(before), end))
    template.check(messages, whole)
    return whole, found


def _end(through: str, whole: str, eos: str | None) -> int:
    """How far the text up to an answer is also the beginning of the whole; 0 if not even the answer is.

    Some templates write an end of sequence, or a line's end, behind the last message alone.
    """
    end, tail = len(through), list[str]()
    while end:
        part = eos if eos and through.endswith(eos, 0, end) else through[end - 1]
        if part != eos and not part.isspace():
            break
        tail.append(part)
        end -= len(part)
    if not whole.startswith(through[:end]):
        return 0
    while tail and whole.startswith(tail[-1], end):
        end += len(tail.pop())
    return end


def _refusal(template: Template, messages: Messages, i: int, before: str, through: str, whole: str) -> str:
    """Why an answer cannot be found in the whole, and what to do."""
    text = before if not whole.startswith(before) else through
    same = next((k for k, (a, b) in enumerate(zip(text, whole, strict=False)) if a != b), min(len(text), len(whole)))
    there = f"{text[same : same + 30]!r} became {whole[same : same + 30]!r} after {whole[max(0, same - 30) : same]!r}"
    if i < len(messages) - 1 and _is_found(template, messages):
        remedy = "train on the last answers alone: --data.assistant_turns last"
    elif messages[0][0] == "system" and _is_found(template, folded(messages)):
        remedy = "write the system message at the start of the first user message instead"
    else:
        asked = template.render(messages[:-1], asks=True)[len(template.render(messages[:-1], asks=False)) :]
        remedy = f"answers are asked for with {asked!r}: write them such that they go on from there, or use rows of "
        remedy += "prompt and completion with texts"
    said = f"the model's chat template rewrites the chat up to message {i + 1} as it goes on: {there}; {remedy}"
    return said.replace(repr(MARK)[1:-1], "")


def _is_found(template: Template, messages: Messages) -> bool:
    """Can the last answer be found in the whole?"""
    return template.render(messages, asks=False).startswith(template.render(messages[:-1], asks=True))


# -- what has to go from a chat that is too long -------------------------------------------------------------


def fitted(messages: Messages, fits: Callable[[Messages], bool]) -> Messages | None:
    """The longest rest of a chat that fits: oldest turns go first, then the start of the user message that is left.

    System messages at the start stay. None: nothing that fits is left.

    Args:
        messages: up to a last answer, or to the user message that asks for one.
        fits: is True of a part of every chat that it is True of.
    """
    if fits(messages):
        return messages
    n_system = next((i for i, (role, _) in enumerate(messages) if role != "system"), len(messages))
    lead = list(messages[:n_system])
    users = [i for i in range(n_system + 1, len(messages)) if messages[i][0] == "user"]
    for i in users:  # few, so there is no need to search
        if fits([*lead, *messages[i:]]):
            return [*lead, *messages[i:]]
    at = users[-1] if users else n_system
    if at >= len(messages) or messages[at][0] != "user":
        return None
    (role, text), rest = messages[at], messages[at + 1 :]

    def without(n: int) -> Messages:
        return [*lead, (role, text[n:]), *rest]

    low, high = 0, len(text) - 1  # what lacks ``low`` letters does not fit
    if high < 1 or not fits(without(high)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(without(middle)) else (middle, high)
    return without(high)

"""Prompts as token ids: which positions predict which tokens, for training and for scoring alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from capfl.errors import DataError, ModelError, counted
from capfl.model.chat import Messages, Span, Template, fitted, spans, template_of
from capfl.model.text import Ids, marked_ids, starts_with, text_ids, texts_ids
from capfl.types import Prompt, Scoring, TooLong, Turns


@dataclass(frozen=True, slots=True)
class Row:
    """Input tokens, and the targets that some of their positions have to predict.

    Attributes:
        at: the targets' positions, ascending; None: the last ``len(targets)``.
    """

    ids: Ids
    targets: Ids
    at: Ids | None = None

    @property
    def positions(self) -> Ids:
        """Of the tokens that predict the targets, (len(targets),)."""
        if self.at is not None:
            return self.at
        return np.arange(len(self.ids) - len(self.targets), len(self.ids), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Example:
    """One item ready for the model.

    ``letters`` holds the token of each option letter (scoring by letter: the train row serves for scoring
    too); ``options`` holds one row an option (scoring by text). A completion has neither.
    """

    train: Row
    right: int
    letters: tuple[int, ...] = ()
    options: tuple[Row, ...] = ()
    cut: int = 0  # tokens that were left out, because the row was longer than data.max_length
    joined: bool = False  # are the prompt's last tokens others before an answer than where it ends?


def encode(
    prompt: Prompt,
    scoring: Scoring,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    too_long: TooLong = "cut-prompt",
    turns: Turns = "all",
    date: str | None = None,
) -> Example:
    """Tokenise one prompt.

    Prompt and answer are tokenised together, so that the seam is natural, and cut where answers begin: for letters at
    the last token, otherwise where the tokens are no longer those of the prompt alone. A special token's letters in a
    row are text.

    Args:
        too_long: what gives way in a row of more than ``max_length`` tokens.
        turns: which answers of a chat are trained on.
        date: for chat templates that write today's; None: today's.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token, or letters that are no tokens of their own.
        DataError: the row does not fit into ``max_length`` and may not be cut; the chat template refuses the messages,
            or rewrites them; or a special token's letters cannot be read as text.
    """
    fit = _Fit(tokenizer, max_length, too_long)
    if prompt.messages:
        return _chat(prompt, template_of(tokenizer, date), fit, turns)
    wholes = texts_ids([prompt.text + answer for answer in prompt.answers], tokenizer)
    if len(wholes) > 1 and scoring == "letter":
        whole = wholes[prompt.right]
        row, cut = fit.row(whole[:-1], whole[-1:])
        return Example(row, prompt.right, letters=_letters(prompt, wholes), cut=cut)
    start = text_ids(prompt.text, tokenizer)
    cuts = [_cut(start, whole) for whole in wholes]
    head, answer = cuts[prompt.right]
    train, cut = fit.row(head, _ended(answer, tokenizer) if prompt.ends else answer)
    options = tuple(fit.row(h, a)[0] for h, a in cuts) if len(cuts) > 1 else ()
    return Example(train, prompt.right, options=options, cut=cut, joined=len(head) < len(start))


def prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, max_length: int, date: str | None = None) -> Ids:
    """What a model is given to answer a prompt, (n,) with n at most ``max_length``: as in training, up to the answer.

    A prompt that is longer loses its beginning, but not the token by which every text begins. A chat loses its oldest
    turns, then the beginning of its last user message.

    Args:
        date: for chat templates that write today's; None: today's.

    Raises:
        DataError: a chat's system message leaves no room, or as ``encode``.
    """
    if not prompt.messages:
        return np.asarray(_shortened(text_ids(prompt.text, tokenizer), max_length, tokenizer), np.int32)
    template = template_of(tokenizer, date)

    def ids(messages: Messages) -> list[int]:
        return marked_ids(template.render(messages, asks=True), [], tokenizer)[0]

    kept = fitted(prompt.messages, lambda messages: len(ids(messages)) <= max_length)
    if kept is None:
        n_tokens = len(ids(prompt.messages))
        raise DataError(f"a prompt of {n_tokens} tokens cannot be cut to {max_length}; raise the limit")
    template.check(kept, template.render(kept, asks=True))
    return np.asarray(ids(kept), np.int32)


def encode_all(
    prompts: Sequence[Prompt],
    scoring: Scoring,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    too_long: TooLong = "cut-prompt",
    turns: Turns = "all",
    date: str | None = None,
) -> list[Example]:
    """All prompts of a run, tokenised before its first round, so that none of them can end it later.

    Raises:
        ModelError: as ``encode``.
        DataError: some prompts cannot be used. Counts all of them; those with the same fault are shown as one.
    """
    faults, examples = list[tuple[str, str]](), list[Example]()
    for number, prompt in enumerate(prompts, start=1):
        try:
            made = encode(prompt, scoring, tokenizer, max_length, too_long=too_long, turns=turns, date=date)
            examples.append(made)
        except DataError as error:
            place = prompt.place or f"item {number}"
            faults.append((place, f"{prompt.answers[prompt.right].strip()[:40]!r}: {error}"))
    if faults:
        raise DataError("\n".join([f"{len(faults)} of {len(prompts)} items cannot be used:", *counted(faults)]))
    return examples


# -- prompts and their answers ----------------------------------------------------------------------


def _letters(prompt: Prompt, wholes: Sequence[list[int]]) -> tuple[int, ...]:
    """The last token of each, which has to be all that they differ in."""
    letters = tuple(ids[-1] for ids in wholes)
    if len({tuple(ids[:-1]) for ids in wholes}) != 1 or len(set(letters)) != len(letters):
        raise ModelError(
            f"data.scoring: this tokenizer does not give each of {', '.join(prompt.answers)} a token of its own; "
            "use data.scoring = text"
        )
    return letters


def _cut(head: Sequence[int], whole: Sequence[int]) -> tuple[list[int], list[int]]:
    same = 0
    while same < min(len(head), len(whole)) and head[same] == whole[same]:
        same += 1
    return list(whole[:same]), list(whole[same:])


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError("this tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json")
    return int(tokenizer.eos_token_id)


def _ended(answer: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The answer with end-of-sequence as its last target, so that the model learns to stop."""
    eos = _eos(tokenizer)
    return answer if answer and answer[-1] == eos else [*answer, eos]


def _shortened(head: list[int], room: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The last tokens of a prompt, behind the one that every text begins with."""
    if len(head) <= room:
        return head
    begin = starts_with(tokenizer) if head[:1] == [tokenizer.bos_token_id] else []
    return begin + head[len(head) - room + len(begin) :]


# -- length ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    """What is done with rows of more than ``max_length`` tokens."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    too_long: TooLong

    def row(self, head: list[int], answer: list[int]) -> tuple[Row, int]:
        """A prompt and its answer as a row, and how many tokens were left out."""
        if not answer or not head:
            raise DataError("a prompt and its answer need at least one token each; remove the empty row")
        total = len(head) + len(answer)
        if total > self.max_length:
            self.may_cut(total)
        if self.too_long == "cut-answer":
            answer = answer[: max(0, self.max_length - len(head))]
            if not answer:
                raise self.no_room(len(head))
        elif self.max_length - len(answer) < 1 + (head[:1] == starts_with(self.tokenizer)):
            raise self.does_not_fit(len(answer))
        head = _shortened(head, self.max_length - len(answer), self.tokenizer)
        row = Row(np.asarray((head + answer)[:-1], np.int32), np.asarray(answer, np.int32))
        return row, total - len(head) - len(answer)

    def may_cut(self, total: int) -> None:
        if self.too_long == "refuse":
            raise DataError(
                f"{total} tokens are more than data.max_length = {self.max_length}; raise it, or let rows be cut: "
                "--data.too_long cut-prompt"
            )

    def no_room(self, n_prompt: int) -> DataError:
        return DataError(
            f"a prompt of {n_prompt} tokens leaves no room for an answer in data.max_length = {self.max_length}; raise "
            "max_length, or cut prompts: --data.too_long cut-prompt"
        )

    def does_not_fit(self, n_answer: int, beside: str = "") -> DataError:
        return DataError(
            f"an answer of {n_answer} tokens does not fit into data.max_length = {self.max_length}{beside}; raise "
            "max_length, or cut answers: --data.too_long cut-answer"
        )


# -- chats -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Talk:
    """A chat as tokens, and which of these are answers: first and behind the last of each."""

    ids: list[int]
    answers: list[Span]

    def row(self) -> Row:
        at = [k - 1 for first, end in self.answers for k in range(first, end)]
        ids = np.asarray(self.ids, np.int32)
        positions = np.asarray(at, np.int32)
        return Row(ids[:-1], ids[positions + 1], positions)


def _chat(prompt: Prompt, template: Template, fit: _Fit, turns: Turns) -> Example:
    messages = [*prompt.messages, ("assistant", prompt.answers[prompt.right])]
    whole = _talk(messages, prompt.given, template, turns)
    talk = whole
    if len(whole.ids) > fit.max_length:
        fit.may_cut(len(whole.ids))
        if fit.too_long == "cut-answer":
            talk = _cut_end(whole, fit)
        else:
            talk = _cut_start(messages, prompt, template, fit, turns)
    if not all(first for first, _ in talk.answers):
        raise DataError("a prompt and its answer need at least one token each; remove the empty row")
    return Example(talk.row(), prompt.right, cut=len(whole.ids) - len(talk.ids))


def _talk(messages: Messages, given: int, template: Template, turns: Turns) -> _Talk:
    """The tokens of messages up to the last answer's end of sequence."""
    text, found = spans(template, messages, given, turns)
    tokenizer = template.tokenizer
    ids, cuts = marked_ids(text, [place for span in found for place in span], tokenizer)
    eos, answers = _eos(tokenizer), list[Span]()
    for first, end in zip(cuts[::2], cuts[1::2], strict=True):
        if eos in ids[first:end]:  # templates write a newline behind it, which nobody needs to predict
            end -= ids[first:end][::-1].index(eos)
        answers.append((first, end))
    first, end = answers[-1]
    ids = ids[:end]
    if ids[-1] != eos:
        ids, answers[-1] = [*ids, eos], (first, end + 1)
    return _Talk(ids, answers)


def _cut_start(messages: Messages, prompt: Prompt, template: Template, fit: _Fit, turns: Turns) -> _Talk:
    """Without its oldest turns, or without the start of the user message that is left."""

    def shorter(kept: Messages) -> _Talk:
        return _talk(kept, max(0, prompt.given - len(messages) + len(kept)), template, turns)

    kept = fitted(messages, lambda kept: len(shorter(kept).ids) <= fit.max_length)
    if kept is None:
        first, end = _talk(messages, 0, template, "last").answers[-1]
        raise fit.does_not_fit(end - first, " with what has to stand before it" if end - first < fit.max_length else "")
    return shorter(kept)


def _cut_end(talk: _Talk, fit: _Fit) -> _Talk:
    answers = [(first, min(end, fit.max_length)) for first, end in talk.answers if first < fit.max_length]
    if not answers:
        raise fit.no_room(talk.answers[0][0])
    return replace(talk, ids=talk.ids[: answers[-1][1]], answers=answers)

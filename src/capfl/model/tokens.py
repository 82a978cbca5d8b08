"""Prompts as token ids: which positions predict which tokens, for training and for scoring alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from capfl.errors import DataError, ModelError
from capfl.types import Prompt, Scoring

Ids = NDArray[np.int32]
SHOWN = 5  # faults listed in one message; the rest are counted


@dataclass(frozen=True, slots=True)
class Row:
    """Input tokens, and the targets that its last ``len(targets)`` positions have to predict."""

    ids: Ids
    targets: Ids


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


def encode(prompt: Prompt, scoring: Scoring, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Example:
    """Tokenise one prompt. A prompt that is too long loses its beginning, never its answer.

    Prompt and answer are tokenised together, so that the seam is natural, and cut where answers begin: for letters at
    the last token, otherwise where the tokens are no longer those of the prompt alone.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token or no chat template where one is needed, or letters
            that are no tokens of their own.
        DataError: an answer alone is longer than max_length, or the chat template refuses the messages.
    """
    before, texts = prompt.text, [prompt.text + answer for answer in prompt.answers]
    if prompt.messages:
        before, texts = _chat(prompt, tokenizer)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=not prompt.messages)["input_ids"])

    wholes = [ids(text) for text in texts]
    if len(wholes) > 1 and scoring == "letter":
        row = wholes[prompt.right]
        return Example(_row(row[:-1], row[-1:], max_length), prompt.right, letters=_letters(prompt, wholes))
    start = ids(before)
    cuts = [_cut(start, whole) for whole in wholes]
    head, answer = cuts[prompt.right]
    train = _row(head, _ended(answer, prompt, tokenizer) if prompt.ends else answer, max_length)
    options = tuple(_row(h, a, max_length) for h, a in cuts) if len(cuts) > 1 else ()
    return Example(train, prompt.right, options=options)


def encode_all(
    prompts: Sequence[Prompt], scoring: Scoring, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Example]:
    """All prompts of a run, tokenised before its first round, so that none of them can end it later.

    Raises:
        ModelError: as ``encode``.
        DataError: some prompts cannot be used. Counts all of them and shows five.
    """
    faults, examples = list[str](), list[Example]()
    for number, prompt in enumerate(prompts, start=1):
        try:
            examples.append(encode(prompt, scoring, tokenizer, max_length))
        except DataError as error:
            faults.append(f"  item {number} ({prompt.answers[prompt.right].strip()[:40]!r}): {error}")
    if faults:
        more = [f"  ... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise DataError("\n".join([f"{len(faults)} of {len(prompts)} items cannot be used:", *faults[:SHOWN], *more]))
    return examples


def _chat(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[str]]:
    """The messages up to the answer, and with each answer, as the model's chat template has them."""
    if not tokenizer.chat_template:
        raise ModelError("this tokenizer has no chat template; use prompt/completion rows instead of messages")
    messages = [{"role": role, "content": content} for role, content in prompt.messages]
    answers = [{"role": "assistant", "content": answer} for answer in prompt.answers]
    try:
        before = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        wholes = [tokenizer.apply_chat_template([*messages, answer], tokenize=False) for answer in answers]
    except Exception as error:  # templates raise whatever their author chose, also on an order of roles
        roles = ", ".join(role for role, _ in prompt.messages)
        raise DataError(f"the model's chat template refuses messages with roles {roles}: {error}") from error
    return str(before), [str(whole) for whole in wholes]


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


def _ended(answer: list[int], prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The answer with end-of-sequence as its last target, so that the model learns to stop."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ModelError("this tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json")
    if prompt.messages and eos in answer:  # templates write a newline behind it, which nobody needs to predict
        return answer[: len(answer) - answer[::-1].index(eos)]
    return answer if answer and answer[-1] == eos else [*answer, int(eos)]


def _row(head: list[int], answer: list[int], max_length: int) -> Row:
    if not answer or not head:
        raise DataError("a prompt and its answer need at least one token each; remove the empty row")
    room = max_length - len(answer)
    if room < 1:
        raise DataError(
            f"an answer of {len(answer)} tokens does not fit into data.max_length = {max_length}; raise max_length"
        )
    ids = np.asarray((head[-room:] + answer)[:-1], np.int32)
    return Row(ids, np.asarray(answer, np.int32))

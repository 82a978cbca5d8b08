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

    Raises:
        ModelError: the tokenizer has no end-of-sequence token or no chat template where one is needed.
        DataError: an answer alone is longer than max_length.
    """
    if len(prompt.answers) > 1 and scoring == "letter":
        return _letter_example(prompt, tokenizer, max_length)
    split = [_split(prompt, answer, tokenizer) for answer in prompt.answers]
    head, answer = split[prompt.right]
    train = _row(head, _ended(answer, tokenizer) if prompt.ends else answer, max_length)
    options = tuple(_row(h, a, max_length) for h, a in split) if len(split) > 1 else ()
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


def _letter_example(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Example:
    whole = [tokenizer(prompt.text + answer)["input_ids"] for answer in prompt.answers]
    heads = {tuple(ids[:-1]) for ids in whole}
    letters = tuple(int(ids[-1]) for ids in whole)
    if len(heads) != 1 or len(set(letters)) != len(letters):
        raise ModelError(
            f"data.scoring: this tokenizer does not give each of {', '.join(prompt.answers)} a token of its own; "
            "use data.scoring = text"
        )
    row = _row(list(heads.pop()), [letters[prompt.right]], max_length)
    return Example(row, prompt.right, letters=letters)


def _split(prompt: Prompt, answer: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the answer, tokenised together so that the seam is natural."""
    if prompt.messages:
        return _split_chat(prompt, answer, tokenizer)
    head, whole = tokenizer(prompt.text)["input_ids"], tokenizer(prompt.text + answer)["input_ids"]
    return _cut(head, whole)


def _split_chat(prompt: Prompt, answer: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    if not tokenizer.chat_template:
        raise ModelError("this tokenizer has no chat template; use prompt/completion rows instead of messages")
    messages = [{"role": role, "content": content} for role, content in prompt.messages]
    try:
        head = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
    except Exception as error:  # templates raise whatever their author chose, also on an order of roles
        roles = ", ".join(role for role, _ in prompt.messages)
        raise DataError(f"the model's chat template refuses messages with roles {roles}: {error}") from error

    def ids(text: object) -> list[int]:
        return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])

    before, after = _cut(ids(head), ids(whole))
    eos = tokenizer.eos_token_id
    if eos in after:  # templates write a newline after the end of a turn, which nobody needs to predict
        after = after[: len(after) - after[::-1].index(eos)]
    return before, after


def _cut(head: Sequence[int], whole: Sequence[int]) -> tuple[list[int], list[int]]:
    same = 0
    while same < min(len(head), len(whole)) and head[same] == whole[same]:
        same += 1
    return list(whole[:same]), list(whole[same:])


def _ended(answer: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The answer with end-of-sequence as its last target, so that the model learns to stop."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ModelError("this tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json")
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

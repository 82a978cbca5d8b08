"""Texts of the user's as token ids: the letters of a special token in them are letters."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from capfl.errors import DataError

Ids = NDArray[np.int32]

MARK = "\ufdd0"  # a code point that no text has: it parts the letters of special tokens that stand in a message


@lru_cache(maxsize=8)
def starts_with(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that the tokenizer puts before every text; empty: none."""
    ids = list(tokenizer("")["input_ids"])
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


@lru_cache(maxsize=8)
def _behind(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the tokenizer puts behind every text."""
    whole, own = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (True, False))
    before = next((k for k in range(len(whole)) if own and whole[k : k + len(own)] == own), None)
    return 0 if before is None else len(whole) - before - len(own)


@lru_cache(maxsize=8)
def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Any special token's letters."""
    added = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest_first = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a text of the user's, with those that the tokenizer puts before every text.

    Those that it puts behind, such as an end of sequence, are left out: an answer goes on from a prompt.

    Raises:
        DataError: it holds a special token's letters, and the tokenizer cannot read them as text.
    """
    return texts_ids([text], tokenizer)[0]


def texts_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """As ``text_ids``, of several texts in one call, which takes less time. Raises DataError: as ``text_ids``."""
    found = [special_tokens(tokenizer).search(text) for text in texts]
    tokens = tokenizer(list(texts), split_special_tokens=any(found))["input_ids"]
    for ids, special in zip(tokens, found, strict=True):
        if special:
            _refuse_special(ids, list(tokenizer("")["input_ids"]), special[0], tokenizer)
    behind = _behind(tokenizer)
    return [list(ids[: len(ids) - behind]) for ids in tokens]


def marked_ids(text: str, cuts: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens of a rendered chat, in which special tokens are special but where ``MARK`` parts their letters.

    Args:
        cuts: places in the text.

    Returns:
        The ids, and of each cut the first token that ends behind it.

    Raises:
        DataError: as ``text_ids``.
    """
    pieces = text.split(MARK)
    ids, ends, at = list[int](), list[int](), 0
    for number, piece in enumerate(pieces):
        own, own_ends = _piece(piece, number > 0, tokenizer)
        ids += own
        ends += [at + end for end in own_ends]
        at += len(piece) + len(MARK)
    if len(pieces) > 1:
        written = special_tokens(tokenizer).findall(text)
        wanted = [int(tokenizer.convert_tokens_to_ids(token)) for token in written]
        _refuse_special(ids, wanted, "special token", tokenizer)
    return ids, [bisect_right(ends, cut) for cut in cuts]


def _piece(text: str, inside: bool, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens of part of a text, and where each ends in it.

    Args:
        inside: does it stand behind another? Some tokenizers put a space before what they are given, so then a line end
            is put there instead.
    """
    lead = "\n" if inside else ""
    line = list(tokenizer(lead, add_special_tokens=False)["input_ids"])
    found = tokenizer(lead + text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids = list(found["input_ids"])
    if ids[: len(line)] != line:  # the line end became one token with what follows
        return _piece(text, False, tokenizer)
    if tokenizer.is_fast:
        return ids[len(line) :], [end - len(lead) for _, end in found["offset_mapping"]][len(line) :]
    ends = [len(tokenizer.decode(ids[: k + 1], clean_up_tokenization_spaces=False)) for k in range(len(ids))]
    return ids[len(line) :], [end - len(lead) for end in ends[len(line) :]]


def _refuse_special(ids: list[int], wanted: list[int], said: str, tokenizer: PreTrainedTokenizerBase) -> None:
    special = {*map(int, tokenizer.all_special_ids)} - {tokenizer.unk_token_id}
    special |= {int(k) for k, token in tokenizer.added_tokens_decoder.items() if token.special}
    if sum(k in special for k in ids) > sum(k in special for k in wanted):
        raise DataError(f"{said!r} is in the text, and this tokenizer cannot read it as text; delete it from the row")

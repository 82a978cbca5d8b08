"""Which prompts a model may decode in one batch. It is tried on a few tokens, as its config may not say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessor

from capfl.model.base import Base
from capfl.model.decode import left_padded, lent
from capfl.model.probe import APART, APART_IN_HALF, LENGTH, SAME, apart, probe_ids

_STEPS = 3  # tokens that are decoded: states of recurrent layers come into play with the second
_OTHER = LENGTH - SAME  # the first token of a row that differs from the tried one everywhere


@dataclass(frozen=True)
class Together:
    """What a model makes the same of in a batch as alone.

    Attributes:
        of_one_length: prompts that have equally many tokens.
        of_any_length: prompts padded on the left.
        leave: rows that go on from a cache that others have been taken out of.
    """

    of_one_length: bool = False
    of_any_length: bool = False
    leave: bool = False


@torch.no_grad()
def together(base: Base) -> Together:
    """Decode a row alone, beside others, and after one of them has left; see what keeps its logits as they are."""
    ids = probe_ids(base.module, 2 * LENGTH).tolist()
    row, other, long, told = ids[:SAME], ids[_OTHER : _OTHER + SAME], ids[:LENGTH], ids[LENGTH : LENGTH + _STEPS]
    alone = _logits(base, [row], told)
    limit = APART.get(next(base.module.parameters()).dtype, APART_IN_HALF)
    of_one_length = apart(alone, _logits(base, [other, row], told)) < limit
    of_any_length = of_one_length and apart(alone, _logits(base, [long, row], told)) < limit
    first = long if of_any_length else other
    try:
        leave = of_one_length and apart(alone, _logits(base, [first, other, row], told, leave=True)) < limit
    except Exception:  # whatever an architecture raises whose states are not all in the cache, by rows
        leave = False
    return Together(of_one_length, of_any_length, leave)


def _logits(base: Base, rows: Sequence[list[int]], told: Sequence[int], leave: bool = False) -> Tensor:
    """The last row's logits, (steps, vocabulary), where each row goes on with the tokens told.

    Args:
        leave: the first row leaves after one token.
    """
    ids, mask = left_padded(rows, base.device)
    forced = _Forced(told, ids.shape[1])
    if not leave:
        return _last(_decoded(base, forced, len(told), ids, mask))
    one = _decoded(base, forced, 1, ids, mask)
    stay = torch.arange(1, len(ids), device=ids.device)
    cache: Any = one.past_key_values
    cache.batch_select_indices(stay)
    rest = _decoded(base, forced, len(told) - 1, one.sequences[stay], F.pad(mask, (0, 1), value=1)[stay], cache)
    return torch.cat([_last(one), _last(rest)])


def _last(found: Any) -> Tensor:
    return torch.stack(found.logits)[:, -1].float()


def _decoded(base: Base, forced: LogitsProcessor, steps: int, ids: Tensor, mask: Tensor, cache: Any = None) -> Any:
    config = GenerationConfig(
        max_new_tokens=steps, do_sample=False, use_cache=True, pad_token_id=0, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    with lent(base, config) as module:
        return module.generate(ids, attention_mask=mask, past_key_values=cache, logits_processor=[forced])


class _Forced(LogitsProcessor):  # type: ignore[misc]
    """Takes the tokens that it is told, whatever the logits: where two are alike, rounding would choose.

    Args:
        width: tokens of the padded prompts.
    """

    def __init__(self, told: Sequence[int], width: int) -> None:
        self._told, self._width = told, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self._told[min(input_ids.shape[1] - self._width, len(self._told) - 1)]
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0.0
        return forced

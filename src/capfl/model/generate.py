"""Answers: what a model with an adapter writes after prompts. Decoding is that of transformers, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from capfl.errors import CapflError, ConfigError, DataError
from capfl.model.accept import positions
from capfl.model.base import Base
from capfl.model.chat import template_of
from capfl.model.decode import left_padded, lent
from capfl.model.lora import AdaptedModel
from capfl.model.text import Ids, special_tokens
from capfl.model.together import Together, together
from capfl.rng import stream
from capfl.types import Adapter

LEAVE = 4  # a batch goes on without the rows that have ended once they are one in so many
_KNOWN: WeakKeyDictionary[nn.Module, Together] = WeakKeyDictionary()  # what models were found to allow
_MARK = "capfl"  # what an assistant says to a chat template that is asked how turns end


@torch.no_grad()
def generate(
    model: AdaptedModel,
    adapter: Adapter,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    places: Sequence[str] = (),
) -> list[list[int]]:
    """The new tokens after each prompt, without the token that ended it, in the order of the prompts.

    A row's tokens do not depend on the batch that it is in, but for the rounding of sums, and for models that scale
    positions by the longest row of a batch (LongRoPE). Rows are padded on the left, masked, and their positions count
    from their own first token. A model that reads padding all the same, as recurrent layers may, gets prompts of one
    length in a batch, or one prompt. Rows that have ended leave their batch where the model allows it, so a long answer
    costs passes of its own only. Each row has random numbers of its own, by its place among the prompts, so neither the
    batch size nor the device changes what is drawn.

    Of the model's generation config only the tokens that end an answer are taken. Penalties and sampling that it asks
    for are not, because what is measured must be the model's own choice.

    Args:
        prompts: token ids (n,) int32 each.
        max_new_tokens: at which an answer is cut.
        temperature: 0 takes the likeliest token (greedy). Otherwise tokens are drawn, logits divided by it.
        top_p: tokens are drawn from the fewest likeliest ones with this probability together (Holtzman et al.,
            arXiv:1904.09751).
        on_text: is called with the answer's text bit by bit, as it comes. For one prompt alone.
        places: what error messages call each prompt; by default by its number.

    Raises:
        ConfigError: a setting outside its range.
        DataError: a prompt is empty, or does not fit into the model's positions with ``max_new_tokens``.
    """
    _check_settings(max_new_tokens, batch_size, temperature, top_p)
    _check_lengths(model.base, prompts, places or [f"prompt {n}" for n in range(1, len(prompts) + 1)], max_new_tokens)
    streamer = _Streamer(model.base.tokenizer, on_text) if on_text else None
    model.write(adapter)
    stops = stop_tokens(model.base)
    by_length = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # the longest first: memory shows at once
    answers: list[list[int]] = [[] for _ in prompts]
    may = allowed(model.base) if min(batch_size, len(prompts)) > 1 else Together()
    size = batch_size if may.of_one_length else 1
    for rows in _batches(by_length, [len(prompt) for prompt in prompts], size, may.of_any_length):
        drawn = _Drawn(rows, len(prompts[rows[0]]), max_new_tokens, temperature, top_p, seed) if temperature else None
        found = _decode(model.base, [prompts[i] for i in rows], stops, max_new_tokens, drawn, streamer, may.leave)
        for i, tokens in zip(rows, found, strict=True):
            answers[i] = tokens
    return answers


def allowed(base: Base) -> Together:
    """What a model may do with rows of a batch; tried once for each model."""
    if base.module not in _KNOWN:
        _KNOWN[base.module] = together(base)
    return _KNOWN[base.module]


def _batches(by_length: Sequence[int], lengths: Sequence[int], size: int, mixed: bool) -> Iterator[list[int]]:
    """Rows in their order, so many at a time; of equal length unless they may be mixed."""
    for _, same in groupby(by_length, key=lambda i: 0 if mixed else lengths[i]):
        rows = list(same)
        yield from (rows[first : first + size] for first in range(0, len(rows), size))


def stop_tokens(base: Base) -> tuple[int, ...]:
    """The tokens that end an answer, ascending: those of the model's generation config, the tokenizer's end of
    sequence, and the special token with which its chat template ends a turn."""
    config = getattr(base.module, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    found = set(named if isinstance(named, list) else [named])
    found |= {base.tokenizer.eos_token_id, _end_of_turn(base.tokenizer)}
    return tuple(sorted(int(token) for token in found if token is not None))


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that stands right behind what an assistant says in a chat; None: there is none."""
    try:
        text = template_of(tokenizer).render([("user", "?"), ("assistant", _MARK)], asks=False)
    except CapflError:  # a template that knows no such chat; its answers end as the config says
        return None
    _, found, rest = text.rpartition(_MARK)
    token = special_tokens(tokenizer).match(rest) if found else None
    return int(tokenizer.convert_tokens_to_ids(token[0])) if token and token[0] else None


def _check_settings(max_new_tokens: int, batch_size: int, temperature: float, top_p: float) -> None:
    for name, value, fits, allowed in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "1 or more"),
        ("batch_size", batch_size, batch_size >= 1, "1 or more"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
    ):
        if not fits:
            raise ConfigError(f"{name} is {value}; it must be {allowed}")
    if top_p < 1 and temperature == 0:
        raise ConfigError(f"top_p is {top_p}, and at temperature 0 nothing is drawn; set a temperature above 0")


def _check_lengths(base: Base, prompts: Sequence[Ids], places: Sequence[str], max_new_tokens: int) -> None:
    limit = positions(cast(Any, base.module).config)
    for place, prompt in zip(places, prompts, strict=True):
        if not len(prompt):
            raise DataError(f"{place} is empty; give it at least one token")
        if limit is not None and len(prompt) + max_new_tokens > limit:
            raise DataError(
                f"{place} has {len(prompt)} tokens, which with max_new_tokens = {max_new_tokens} do not fit into the "
                f"{limit} positions of {base.name}; shorten the prompt or lower max_new_tokens"
            )


def _decode(
    base: Base,
    prompts: Sequence[Ids],
    stops: Sequence[int],
    max_new_tokens: int,
    drawn: _Drawn | None,
    streamer: TextStreamer | None,
    leave: bool,
) -> list[list[int]]:
    """The answers of one batch, each without the token that ended it."""
    ids, mask = left_padded(prompts, base.device)
    width, cache = ids.shape[1], None
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # of the prompts, those that are decoded still
    while rows:
        config = GenerationConfig(
            max_new_tokens=width + max_new_tokens - ids.shape[1], do_sample=False, use_cache=True,
            eos_token_id=list(stops) or None, pad_token_id=stops[0] if stops else 0, return_dict_in_generate=True,
        )  # fmt: skip
        with lent(base, config) as module:
            out = module.generate(
                ids,
                attention_mask=mask,
                past_key_values=cache,
                logits_processor=LogitsProcessorList([drawn] if drawn else []),
                stopping_criteria=StoppingCriteriaList([_SomeEnded(width, stops)] if leave and len(rows) > 1 else []),
                streamer=streamer,
            )
        ids = out.sequences
        cut = ids.shape[1] == width + max_new_tokens
        done = _ended(ids[:, width:], stops) | cut
        for row, tokens in zip(rows, ids[:, width:].tolist(), strict=True):
            answers[row] = until(tokens, stops)
        going = (~done).nonzero()[:, 0]
        rows = [rows[place] for place in going.tolist()]
        if rows:
            cache = out.past_key_values
            cache.batch_select_indices(going)
            mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)[going]
            ids = ids[going]
            if drawn:
                drawn.keep(going.cpu())
    return answers


def _ended(new: Tensor, stops: Sequence[int]) -> Tensor:
    """Which rows of new tokens (rows, tokens) have one that ends an answer; (rows,) bool."""
    return torch.isin(new, torch.tensor(stops, dtype=new.dtype, device=new.device)).any(dim=1)


def until(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """The tokens before the first that ends an answer."""
    return tokens[: next((n for n, token in enumerate(tokens) if token in stops), len(tokens))]


class _SomeEnded(StoppingCriteria):  # type: ignore[misc]
    """Stops the decoding of a batch when so many of its rows have ended that it pays to go on without them.

    Args:
        width: tokens of the padded prompts.
    """

    def __init__(self, width: int, stops: Sequence[int]) -> None:
        self._width, self._stops = width, stops

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        ended = _ended(input_ids[:, self._width :], self._stops)
        return torch.full_like(ended, bool(ended.sum() * LEAVE >= len(ended)))


class _Streamer(TextStreamer):  # type: ignore[misc]
    """Hands text on as soon as its words are whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)


class _Drawn(LogitsProcessor):  # type: ignore[misc]
    """Draws the next token of each row and leaves it as the only one that greedy decoding can take.

    Args:
        rows: places among all prompts, by which random numbers are known.
        width: tokens of the padded prompts.
    """

    def __init__(
        self, rows: Sequence[int], width: int, steps: int, temperature: float, top_p: float, seed: int
    ) -> None:
        self._uniform: NDArray[np.float64] = np.stack([stream(seed, "generate", row).random(steps) for row in rows])
        self._width, self._temperature, self._top_p = width, temperature, top_p

    def keep(self, places: Tensor) -> None:
        """The rows that stay in the batch, by their places in it."""
        self._uniform = self._uniform[places.numpy()]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = min(input_ids.shape[1] - self._width, self._uniform.shape[1] - 1)  # transformers may try one too many
        uniform = torch.from_numpy(self._uniform[:, step, None])
        chosen = _draw(scores.float().cpu().double() / self._temperature, self._top_p, uniform).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _draw(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """A token of each row, (rows, 1), from logits (rows, vocabulary) and uniform numbers (rows, 1) in [0, 1)."""
    likely, tokens = torch.sort(logits.softmax(-1), dim=-1, descending=True, stable=True)
    sums = likely.cumsum(-1)
    kept = 1 + (sums[:, :-1] < top_p).sum(-1, keepdim=True)
    mass = sums.gather(1, kept - 1)
    place = (sums <= uniform * mass).sum(-1, keepdim=True)
    return tokens.gather(1, torch.minimum(place, kept - 1))

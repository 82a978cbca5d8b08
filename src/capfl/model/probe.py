"""What a base is asked once it is loaded: two passes over a few tokens show what its config may not say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from capfl.errors import ModelError
from capfl.model.tokens import Example

LENGTH, SAME = 8, 5  # tokens of a row, and how many of them two rows have in common
APART = {torch.float32: 1e-3, torch.float64: 1e-3}  # by which equal logits may differ, relative to their norm
APART_IN_HALF = 0.1  # rounding differs with the shapes of a batch; what a later token says would change far more


def check_base(
    module: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str, dtype: torch.dtype, limit: float | None = None
) -> None:
    """See that a model is causal, that its tokenizer is its own, and that its logits are finite.

    Rows are padded on the right, and no mask is passed. So what stands behind a text, or beside it in a batch, must
    not change what the model makes of it.

    Args:
        limit: by which equal logits may differ, relative to their norm; by default what ``dtype`` rounds.

    Raises:
        ModelError: one of these is not so. Says which, and what to do.
    """
    check_tokenizer(module, tokenizer, name)
    _check_finite(module, name, dtype)
    device = next(module.parameters()).device
    first, other = probe_ids(module, LENGTH), probe_ids(module, 2 * LENGTH - SAME)[LENGTH:]
    both = torch.stack([first, torch.cat([first[:SAME], other]), first.roll(1)]).to(device)
    try:
        together, alone = _logits(module, both), _logits(module, both[:1, :SAME])
    except Exception as error:  # whatever an architecture raises on text alone
        raise ModelError(
            f"model.path: {name} cannot be run on text alone ({type(error).__name__}: {_first_line(error)}); "
            "give a causal language model, such as smollm2"
        ) from error
    if not bool(together.isfinite().all() and alone.isfinite().all()):
        raise ModelError(f"model.path: the logits of {name} are not finite in {str(dtype)[6:]}; {_finer(dtype)}")
    limit = limit or APART.get(dtype, APART_IN_HALF)
    if apart(together[0, :SAME], together[1, :SAME]) > limit:
        raise ModelError(
            f"model.path: {name} is no causal language model: a later token changes its logits of earlier ones; give "
            "a model that was trained to continue texts, such as smollm2"
        )
    if apart(together[0, :SAME], alone[0]) > limit:
        raise ModelError(
            f"model.path: the logits of {name} depend on the length of its input or on what else is in a batch, so "
            "that padding would change results; give another model"
        )


def _check_finite(module: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Raises ModelError: a weight is not finite, be it of a token or an expert that the passes do not meet."""
    for weight, values in module.named_parameters():
        if values.numel() and values.is_floating_point() and values.element_size() > 1:  # bytes are quantised
            least, most = values.detach().aminmax()
            if math.isfinite(least) and math.isfinite(most):
                continue
            raise ModelError(
                f"model.path: {name} has weights that are not finite in {str(dtype)[6:]}, in {weight}; {_finer(dtype)}"
            )


def _finer(dtype: torch.dtype) -> str:
    others = "float32 or bfloat16" if dtype == torch.float16 else "float32"
    return "restore its weights" if dtype == torch.float32 else f"use model.dtype = {others}"


def check_tokenizer(module: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """See that there is an embedding for every token that a text can have.

    Added tokens beyond the embedding are common (Gemma 3 has one for images), and harmless while no text has them.

    Raises:
        ModelError: the embedding lacks rows.
    """
    rows = embedding_rows(module)
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    needed = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    added = tokenizer.added_tokens_decoder
    if lost := sorted(token for token, number in beyond.items() if number not in added or number in needed):
        raise ModelError(
            f"model.path: the tokenizer of {name} has {len(lost)} tokens, {lost[0]!r} for one, beyond the {rows} rows "
            "of the model's embedding; give the tokenizer that the model was trained with, or save the model with "
            "resize_token_embeddings"
        )


def check_tokens(module: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str, examples: Iterable[Example]) -> None:
    """Raises ModelError: examples have tokens beyond the rows of the model's embedding."""
    rows = embedding_rows(module)
    for example in examples:
        for row in (example.train, *example.options):
            highest = max(int(row.ids.max()), int(row.targets.max()))
            if highest >= rows:
                raise ModelError(
                    f"model.path: a text has the token {tokenizer.convert_ids_to_tokens(highest)!r}, which is beyond "
                    f"the {rows} rows of the embedding of {name}; use a chat template and texts without it, or save "
                    "the model with resize_token_embeddings"
                )


def embedding_rows(module: nn.Module) -> int:
    """Token ids that the model has embeddings of."""
    return int(cast(Any, module).get_input_embeddings().weight.shape[0])


def probe_ids(module: nn.Module, count: int) -> Tensor:
    """Some token ids, (count,), none of which stands for an image or the like."""
    config = cast(Any, module).config.to_dict()
    special = {value for key, value in config.items() if key.endswith(("_token_id", "_token_index"))
               and isinstance(value, int)}  # fmt: skip
    free = [i for i in range(1, min(embedding_rows(module), 4 * LENGTH + len(special))) if i not in special]
    return torch.tensor([free[i % len(free)] for i in range(count)])


@torch.no_grad()
def _logits(module: nn.Module, ids: Tensor) -> Tensor:
    return cast(Tensor, module(input_ids=ids, use_cache=False).logits).float()


def apart(a: Tensor, b: Tensor) -> float:
    """How far b is from a, relative to its norm."""
    return float((a - b).norm() / a.norm())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")

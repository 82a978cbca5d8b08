"""What a client's prompts look like to the frozen base: a few numbers that tell its peers from the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from capfl.errors import DataError
from capfl.model.hidden import padded
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import Row
from capfl.rng import stream
from capfl.types import Adapter, FeatureKind

Doubles = npt.NDArray[np.float64]


@torch.no_grad()
def features(
    model: AdaptedModel, base: Adapter, rows: Sequence[Row], kind: FeatureKind, batch_size: int = 32
) -> tuple[Doubles, Doubles]:
    """Mean and standard deviation, over a client's items, of what the base computes at the last token of the prompt.

    One pass over the items, once. The standard deviation says how well the mean is known: a difference between two
    clients may be one of their samples.

    Args:
        base: an adapter that changes nothing (B = 0).
        kind: ``hidden``, the hidden state in the middle of the model, (hidden,); ``moments``, the mean and the standard
            deviation over the hidden dimension of every layer's state, (2 * (layers + 1),), as in CA-PFL; neither
            reads an answer, which comes after the prompt. ``concept``, ``hidden`` and then ``bound``, (2 * hidden,).

    Raises:
        DataError: there are no items.
    """
    if not rows:
        raise DataError("a client without items has no features; give it at least one")
    model.write(base)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    found = []
    for first in range(0, len(order), batch_size):
        batch = [rows[i] for i in order[first : first + batch_size]]
        ids = padded([row.ids for row in batch]).to(model.base.device)
        last = torch.tensor([len(row.ids) - len(row.targets) for row in batch], device=model.base.device)
        each_row = torch.arange(len(batch))
        if kind == "moments":
            outputs = cast(Any, model.base.module)(input_ids=ids, use_cache=False, output_hidden_states=True)
            at_last = [state[each_row, last].double() for state in outputs.hidden_states]
            moments = [torch.stack([h.mean(-1), h.std(-1)], -1) for h in at_last]
            found.append(torch.cat(moments, -1).cpu().numpy())
        else:  # the layers above need not run
            found.append(model.lower(ids, len(model.layers) // 2)[each_row, last].double().cpu().numpy())
    each = np.concatenate(found)
    if kind == "concept":
        each = np.concatenate([each, bound(each, [rows[i].targets.tolist() for i in order])], axis=1)
    return each.mean(0), each.std(0)


def bound(states: Doubles, answers: Sequence[Sequence[int]]) -> Doubles:
    """Every state, less the mean of all, with its signs changed in a pattern that its answer says; (n, d) as given.

    Two clients' means of these agree where the same prompts have the same answers, and are unrelated where they have
    others: a product of patterns for one answer is 1, for two it is random. Binding by random signs: Plate,
    Holographic reduced representations, IEEE Trans. Neural Netw. 6(3), 1995; with signs, Gayler, arXiv:cs/0412059.

    Args:
        answers: token ids of the answer of each, any length.
    """
    centred = states - states.mean(0)
    signs = {tuple(a): stream(0, "answer", *a).integers(0, 2, states.shape[1]) * 2 - 1 for a in answers}
    return np.stack([state * signs[tuple(a)] for state, a in zip(centred, answers, strict=True)])

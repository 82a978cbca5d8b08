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
from capfl.types import Adapter, FeatureKind

Doubles = npt.NDArray[np.float64]


@torch.no_grad()
def features(
    model: AdaptedModel, base: Adapter, rows: Sequence[Row], kind: FeatureKind, batch_size: int = 32
) -> tuple[Doubles, Doubles]:
    """Mean and standard deviation, over a client's items, of what the base computes at the last token of the prompt.

    Answers are not read: the state of a prompt's last token comes before them. One pass over the items, once. The
    standard deviation says how well the mean is known: a difference between two clients may be one of their samples.

    Args:
        base: an adapter that changes nothing (B = 0).
        kind: ``hidden``, the hidden state in the middle of the model, (hidden,); or ``moments``, the mean and the
            standard deviation over the hidden dimension of every layer's state, (2 * (layers + 1),), as in CA-PFL.

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
        states = cast(Any, model.base.module)(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        at_last = [state[torch.arange(len(batch)), last].double() for state in states]
        if kind == "hidden":
            found.append(at_last[len(at_last) // 2].cpu().numpy())
        else:
            moments = [torch.stack([h.mean(-1), h.std(-1)], -1) for h in at_last]
            found.append(torch.cat(moments, -1).cpu().numpy())
    each = np.concatenate(found)
    return each.mean(0), each.std(0)

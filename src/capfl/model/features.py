"""What a client's data look like to the frozen base: a few numbers that tell its peers from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capfl.errors import DataError
from capfl.model.hidden import padded
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import Row
from capfl.rng import stream

Doubles = npt.NDArray[np.float64]

PATTERNS = 2  # of signs for each answer: their chance agreements average out


def lengths(model: AdaptedModel) -> dict[str, int]:
    """How many numbers there are in each part of what ``describe`` gives."""
    hidden = int(cast(Any, model.base.module).config.hidden_size)
    return {"features": (1 + PATTERNS) * hidden, "deviation": hidden, "answers": 1}


@torch.no_grad()
def describe(model: AdaptedModel, rows: Sequence[Row], batch_size: int = 32) -> dict[str, Tensor]:
    """One pass over a client's items, through the first quarter of the frozen base's layers.

    A prompt's state is the mean over its tokens of what enters the layer at a quarter of the depth. Chosen by
    measurement among layers, and against the last token's state: docs/LOG.md, 2026-11-24.

    Returns:
        Vectors in float32. ``features``: the mean over items of each prompt's state, then of that state ``bound`` to
        the answer, ((1 + PATTERNS) * hidden,); the first part does not see an answer. ``deviation``: standard
        deviation of the prompts' states over items, (hidden,); it says how well a mean is known, because a difference
        between two clients may be one of their samples. ``answers``: the effective number of answers, 1 / sum_a p_a^2
        for shares p_a of the items (Simpson, Nature 163, 1949), (1,).

    Raises:
        DataError: there are no items.
    """
    if not rows:
        raise DataError("a client without items has nothing to describe; give it at least one")
    model.write(model.initial_adapter(0))  # B = 0: the base itself
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    states_of = []
    for first in range(0, len(order), batch_size):
        batch = [rows[i] for i in order[first : first + batch_size]]
        ids = padded([row.ids for row in batch]).to(model.base.device)
        states = model.lower(ids, len(model.layers) // 4).cpu().double().numpy()
        ends = [int(row.positions[0]) + 1 for row in batch]  # of the prompts
        # not the first token, whose state is that of any first token, and many times larger than all others
        states_of += [state[min(1, n - 1) : n].mean(0) for state, n in zip(states, ends, strict=True)]
    prompts, answers = np.stack(states_of), [tuple(rows[i].targets.tolist()) for i in order]
    shares = np.array(list(Counter(answers).values())) / len(rows)
    found = {
        "features": np.concatenate([prompts.mean(0), bound(prompts, answers).mean(0)]),
        "deviation": prompts.std(0),
        "answers": 1 / (shares**2).sum(keepdims=True),
    }
    return {name: torch.from_numpy(vector).float() for name, vector in found.items()}


def bound(states: Doubles, answers: Sequence[tuple[int, ...]]) -> Doubles:
    """Every state (n, d), less the mean of all, with its signs changed in patterns that its answer says.

    Two clients' means of these agree where the same prompts have the same answers, and are unrelated where they have
    others: a product of patterns for one answer is 1, for two it is random. Binding by random signs: Plate,
    Holographic reduced representations, IEEE Trans. Neural Netw. 6(3), 1995; with signs, Gayler, arXiv:cs/0412059.

    Args:
        answers: token ids of the answer of each, any length.

    Returns:
        (n, PATTERNS * d), one pattern after the other.
    """
    centred = states - states.mean(0)
    shape = PATTERNS, states.shape[1]
    signs = {answer: stream(0, "answer", *answer).integers(0, 2, shape) * 2 - 1 for answer in set(answers)}
    return np.stack([(state * signs[answer]).ravel() for state, answer in zip(centred, answers, strict=True)])

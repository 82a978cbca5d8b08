"""What a client's data look like to the frozen base: a few numbers that tell its peers from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capfl.errors import DataError
from capfl.model.hidden import padded
from capfl.model.layers import hidden_size
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import Row
from capfl.rng import stream

Doubles = npt.NDArray[np.float64]

PATTERNS = 2  # of signs for each answer: their chance agreements average out
AGAIN = 0.5  # share of a client's texts that come more than once, from which on they are bound as options are
PHRASE = 4  # tokens in a row
FREE = 150.0  # effective number of distinct texts, from which on they share no phrases to speak of
COUNTED = 1000  # texts whose phrases are counted, at most: evenly over all


def lengths(model: AdaptedModel) -> dict[str, int]:
    """How many numbers there are in each part of what ``describe`` gives."""
    hidden = hidden_size(model.base.module)
    return {"features": (1 + PATTERNS) * hidden, "deviation": hidden, "answers": 1, "texts": 2 * hidden}


def describe(model: AdaptedModel, rows: Sequence[Row], texts: bool = False, batch_size: int = 32) -> dict[str, Tensor]:
    """What a client's items are like: one pass through the first quarter of the frozen base's layers.

    Args:
        texts: are the answers texts, of which most may be unlike any other? Else they are options.

    Returns:
        Vectors in float32. ``features``: the mean over items of each prompt's state, then of that state ``bound`` to
        the answer, ((1 + PATTERNS) * hidden,); the first part does not see an answer. ``deviation``: standard
        deviation of the prompts' states over items, (hidden,); it says how well a mean is known, because a difference
        between two clients may be one of their samples. ``answers``: the effective number of answers, 1 / sum_a p_a^2
        for shares p_a of the items (Simpson, Nature 163, 1949), (1,). ``texts``, if answers are such: the mean over
        items of their states, then their standard deviation, (2 * hidden,). Where most texts come once, nothing is
        bound: that part is 0, and ``answers`` is 1 / ``repeated``, ``FREE`` at most.

    Raises:
        DataError: there are no items.
    """
    if not rows:
        raise DataError("a client without items has nothing to describe; give it at least one")
    prompts, written = states(model, rows, batch_size)
    return summed_up(prompts, written if texts else None, [tuple(row.targets.tolist()) for row in rows])


@torch.no_grad()
def states(model: AdaptedModel, rows: Sequence[Row], batch_size: int = 32) -> tuple[Doubles, Doubles]:
    """The states (n, hidden) of the prompts and of the answers of n rows.

    A prompt's state is the mean over its tokens of what enters the layer at a quarter of the depth. Chosen by
    measurement among layers, and against the last token's state: docs/LOG.md, 2026-11-24. An answer's state is that of
    its tokens, which stand behind the prompt, but for the last, which the model does not read.
    """
    model.write(model.initial_adapter(0))  # B = 0: the base itself
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    found = np.zeros((2, len(rows), hidden_size(model.base.module)))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        ids = padded([rows[i].ids for i in batch]).to(model.base.device)
        entering = model.entering(ids, len(model.layers) // 4).cpu().double().numpy()
        for i, state in zip(batch, entering, strict=True):
            end, n = len(rows[i].ids), int(rows[i].positions[0]) + 1  # n tokens of the prompt, up to a first answer
            # not the first token, whose state is that of any first token, and many times larger than all others
            found[0, i] = state[min(1, n - 1) : n].mean(0)
            said = rows[i].positions[1:]  # where the answers' tokens stand, but for the first of further answers
            found[1, i] = state[said if len(said) else [end - 1]].mean(0)
    return found[0], found[1]


def summed_up(prompts: Doubles, texts: Doubles | None, answers: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
    """What ``describe`` returns, from the states (n, hidden) and the answers' tokens.

    Args:
        texts: of the answers, if they are texts.
    """
    counts = Counter(answers)
    shares = np.array(list(counts.values())) / len(answers)
    if texts is not None and shares[shares > 1 / len(answers)].sum() < AGAIN:
        bindings, same = np.zeros(PATTERNS * prompts.shape[1]), max(repeated(answers), 1 / FREE)
    else:
        bindings, same = bound(prompts, answers).mean(0), float((shares**2).sum())
    found = {
        "features": np.concatenate([prompts.mean(0), bindings]),
        "deviation": prompts.std(0),
        "answers": np.array([1 / same]),
    }
    if texts is not None:
        found["texts"] = np.concatenate([texts.mean(0), texts.std(0)])
    return {name: torch.from_numpy(vector).float() for name, vector in found.items()}


def repeated(texts: Sequence[tuple[int, ...]]) -> float:
    """The share of a text's phrases to be expected in another one: the mean over pairs; 0 of a single text.

    A phrase is ``PHRASE`` tokens in a row, or the whole of a shorter text. Where texts are equal in whole or not at
    all, this is how likely two of them are equal, as sum_a p_a^2 is for options. It does not depend on how many there
    are.

    Args:
        texts: token ids of each, any length.
    """
    texts = texts[:: 1 + len(texts) // COUNTED]
    phrases = [{ids[i : i + PHRASE] for i in range(max(1, len(ids) - PHRASE + 1))} for ids in texts]
    holding = Counter(phrase for own in phrases for phrase in own)
    others = [sum(holding[phrase] - 1 for phrase in own) / len(own) for own in phrases]
    return sum(others) / max(1, len(texts) * (len(texts) - 1))


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

"""Which inputs of a linear layer a change of its LoRA factor A is made of: the arithmetic of benchmarks/inversion.py.

The gradient of a row of A is a sum of the layer's inputs, one for each token, so it lies in their span. DAGER (Petrov
et al., NeurIPS 2024, arXiv:2405.15586) tests which tokens lie in the span of the rows (``outside``). That tells much
while there are fewer tokens than rows. AdamW takes the size out of every value and leaves little but the sign, and a
codec leaves the signs of some: then no token is in the span any more. Greedy pursuit with a support that all rows share
(Tropp, Gilbert and Strauss, Signal Processing 86, 2006) needs neither: it takes the tokens that explain most of
what is left of all rows, takes out what the tokens so far explain, and goes on (``pursue``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

RIDGE = 1e-3  # of the mean square of a token's inputs: against tokens that are almost the same
PASSES = 16  # of a pursuit: of many tokens, several are taken at once


def outside(rows: Tensor, inputs: Tensor) -> Tensor:
    """The share of each input's length that is outside the span of the rows, (n,): 0 for those in it.

    Args:
        rows: (r, d), all values known.
        inputs: (n, d).
    """
    _, sizes, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    inside = normalize(inputs.double(), dim=1) @ basis[sizes > 1e-6 * sizes[0].clamp(min=1e-30)].T
    share: Tensor = (1 - inside.square().sum(1)).clamp(min=0).sqrt().float()
    return share


def left(rows: Tensor, seen: Tensor, atoms: Tensor) -> Tensor:
    """What atoms do not explain of the values that were seen, by least squares of each row, (r, d); 0 elsewhere.

    Args:
        seen: (r, d), 1 where a value was sent and 0 elsewhere.
        atoms: (k, d), inputs that are in all rows.
    """
    if not len(atoms):
        return rows * seen
    shown = atoms.T * seen.unsqueeze(2)  # (r, d, k)
    gram = shown.transpose(1, 2) @ shown
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    gram.diagonal(dim1=1, dim2=2).add_(ridge.unsqueeze(1))
    shares = torch.linalg.solve(gram, shown.transpose(1, 2) @ (rows * seen).unsqueeze(2))
    rest: Tensor = (rows - (shown @ shares).squeeze(2)) * seen
    return rest


def explained(rest: Tensor, seen: Tensor, inputs: Tensor) -> Tensor:
    """How much of the rest of all rows each input explains alone, (n,), in squares: the more, the likelier it is there.

    Args:
        rest: (r, d), 0 where nothing was seen, see ``left``.
        inputs: (n, d).
    """
    return ((inputs @ rest.T).square() / (inputs.square() @ seen.T).clamp(min=1e-12)).sum(1)


def pursue(rows: Tensor, seen: Tensor, inputs: Tensor, n: int, known: Sequence[int] = ()) -> list[int]:
    """The n inputs that explain the rows best, the first found first, beside those that are known to be there.

    Args:
        rows: (r, d), of all modules that have the same inputs. They count alike, whatever their length.
        seen: (r, d), as for ``left``.
        inputs: (v, d), one for each token.
    """
    rows, found, taken = normalize(rows * seen, dim=1), list[int](), sorted(set(known))
    while len(found) < n:
        score = explained(left(rows, seen, inputs[taken]), seen, inputs)
        score[taken] = -1.0
        best = score.topk(min(math.ceil(n / PASSES), n - len(found))).indices.tolist()
        found += best
        taken += best
    return found

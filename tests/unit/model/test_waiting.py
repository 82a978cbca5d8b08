"""Within a local step nothing waits for the device: no number of a tensor is asked for before the loss, at its end.

On a CPU nothing ever waits, so the operations are counted that would; what `tolist` reads of the loss is none of them
there. AdamW's counters of steps are numbers on the CPU everywhere. transformers asks once in a pass whether rows are
packed (docs/gpu.md).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from capfl.config.schema import TrainConfig
from capfl.methods.posterior import Importance, Posterior, PosteriorMemory
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.lot import steps_together
from capfl.model.tokens import Row
from capfl.model.train import local_steps
from capfl.types import Adapter, ClientState

WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "masked_select", "_unique2"}
OTHERS = ("torch/optim/adam.py", "transformers/masking_utils.py")


class Watch(TorchDispatchMode):
    """Notes who asks for numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITING:
            frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
            if not any(frame.filename.endswith(OTHERS) for frame in frames):
                own = [frame for frame in frames if "/capfl/" in frame.filename]
                self.asked.append(f"{func} {own[-1].filename}:{own[-1].lineno}" if own else str(func))
        return func(*args, **(kwargs or {}))


def rows() -> Rows:
    ids = torch.arange(1, 40, dtype=torch.int32).numpy()
    return Rows([Row(ids[: n + 1], ids[1:3]) for n in (5, 9, 7, 6)])


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_asks_for_no_number(
    adapt: Callable[..., AdaptedModel], wander: Callable[..., Adapter], together: bool, checkpointing: bool
) -> None:
    model, start = adapt(), wander(adapt())
    ranks = Importance(torch.full((8,), 2.0), torch.full((8,), 200.0))
    penalty = Posterior().penalty(start, ClientState("a", ranks=PosteriorMemory(ranks, ranks)), n_train=4)
    config, cache = TrainConfig(accumulate=2, checkpointing=checkpointing), HiddenCache(1 << 20)

    def asked(steps: int) -> list[str]:
        job = Job(rows(), [[0, 1, 2, 3]] * steps, start, penalty=penalty)
        with Watch() as watch:
            if together:
                steps_together(model, cache, [job, job], config)
            else:
                local_steps(model, cache, job, config)
        return watch.asked

    asked(1)  # hidden states are kept from here on
    few, more = asked(1), asked(3)
    assert few  # at the end: is the adapter finite?
    assert more == few

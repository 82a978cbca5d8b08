"""What a run will cost, before it runs: bytes, memory, time. What `capfl plan` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch

from capfl import adapter as algebra
from capfl.checks import Clients, planned_clients
from capfl.config import Config
from capfl.errors import CapflError
from capfl.federation import POOLED
from capfl.machine import peak_memory
from capfl.methods import build
from capfl.methods.secure import refuse_few
from capfl.metrics import written
from capfl.model.accept import check_positions
from capfl.model.base import pick_device, skeleton
from capfl.model.layers import adapter_shapes, hidden_size, remarks
from capfl.model.written import MOST_NEW
from capfl.plan.memory import Advice, advise, estimate, of_a_worker
from capfl.plan.time import Calibration, calibrate, weights_are_here
from capfl.plan.traffic import measure, settled, totals
from capfl.roles.agreement import agreements
from capfl.round import sample_size
from capfl.workers import check_workers

LENGTHS = (256, 1024, 4096)  # tokens of rows whose activations are stated


@dataclass(frozen=True)
class Plan:
    """What a run costs.

    Attributes:
        parameters: elements of the adapter.
        clients_from: where the number of clients comes from.
        parts: ``up`` and ``down``, bytes by part: of one client in one round, once messages have settled, to and from
            a client that took part in the round before. Means over clients, and over two rounds.
        dense_fp32_round_trip: bytes of the whole adapter in float32, both ways.
        totals: bytes of all clients and rounds, introductions included; ``bytes_down`` has the final delivery.
        turns: of a round, at most: clients are taken to be one group.
        memory: bytes at the peak by what they are for, and their ``total``.
        memory_per_worker: bytes of it that each worker has of its own; None: there is one process.
        memory_row_tokens: tokens of a row that ``memory`` reckons with.
        activations: bytes of them in ``memory``, by tokens of a row, were rows so long.
        seconds: by what they are spent on, one client after the other on this machine, whatever ``runtime.workers``;
            None if it is not known, and then ``seconds_reason`` says why.
        round_seconds: of the training of a round, where every client has a machine like this: as many times the
            longest visit as there are turns.
        remarks: what is not adapted, although it could be thought to be.
    """

    model: str
    method: str
    parameters: int
    clients: int
    clients_from: str
    clients_per_round: int
    turns: int
    rounds: int
    parts: Mapping[str, Mapping[str, int]]
    dense_fp32_round_trip: int
    totals: Mapping[str, int]
    memory: Mapping[str, int]
    memory_per_worker: int | None
    memory_row_tokens: int
    activations: Mapping[int, int]
    memory_advice: Advice
    seconds: Mapping[str, float] | None
    round_seconds: float | None
    seconds_reason: str | None
    remarks: Sequence[str]

    @property
    def bytes_up(self) -> int:
        return sum(self.parts["up"].values())

    @property
    def bytes_down(self) -> int:
        return sum(self.parts["down"].values())

    @property
    def bytes_round_trip(self) -> int:
        return self.bytes_up + self.bytes_down

    def to_json(self) -> dict[str, Any]:
        """As `capfl plan --json` prints it."""
        return asdict(self) | {
            "bytes_up": self.bytes_up, "bytes_down": self.bytes_down, "bytes_round_trip": self.bytes_round_trip,
        }  # fmt: skip


def make_plan(config: Config, calibration: bool = True, clients: Clients | None = None) -> Plan:
    """Measure what messages take, estimate memory, and time a few steps if model and data are here.

    Args:
        calibration: without it nothing is loaded but shapes and data, and no time is given.
        clients: who takes part, if that has been found; by default it is found here.

    Raises:
        ConfigError: a name, a target or a partition that does not exist, or rows longer than the model's positions.
        ModelError: the shapes of the model cannot be known, or it cannot be a base.
        DataError: the data are here, but cannot be shared out as the config asks.
    """
    if config.runtime.workers > 1:
        check_workers(config.runtime.workers, pick_device(config.model.device).type)
    torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
    process = peak_memory()
    method = build(config.method, config.seed)
    module = skeleton(config.model)
    check_positions(cast(Any, module).config, config.data.max_length, config.model.path)
    shapes = adapter_shapes(module, config.lora)
    clients = clients or planned_clients(config)

    # bytes
    who = [POOLED] if method.pooled else list(clients.ids)
    blank = {name: torch.zeros(1).expand(*shape) for name, shape in shapes.items()}  # whatever its size, no memory
    agreement = agreements(config, blank, config.model.path)[method.name]
    visits = sample_size(len(who), config.federation.fraction)
    refuse_few(agreement.method, who, visits)
    traffic = measure(agreement, who, hidden_size(module))
    n_turns = len(traffic.turns(who[:visits], config.seed, 1))

    # time
    measured: Calibration | None = None
    reason: str | None = None
    if not calibration:
        reason = "--no-calibrate was given"
    elif not weights_are_here(config.model.path):
        reason = f"the weights of {config.model.path} are not here, and a plan fetches none; give a folder with them"
    elif clients.missing:
        reason = f"the data are not here: {clients.missing}"
    else:
        try:
            measured = calibrate(config, method, clients.items, clients.splits)
        except CapflError as error:
            reason = str(error)

    # memory
    length = measured.length if measured else config.data.max_length
    letters = config.data.scoring == "letter" and all(item.choices for item in clients.items)
    answers = measured.answers if measured else 1 if letters else length
    writes = 0 if letters or not written(config.evaluation.metrics) else config.evaluation.max_new_tokens or MOST_NEW
    of_length = partial(
        estimate,
        module=module,
        shapes=shapes,
        written=writes,
        rows=None if clients.missing else len(clients.items),
        lossy=not (agreement.up.exact and agreement.down.exact),
        patched=method.combine.relays,
        process=process,
    )
    estimated = partial(of_length, length=length, answers=answers)
    memory = estimated(config)
    activations = {
        n: of_length(config, length=n, answers=max(1, n * answers // length))["activations"] for n in LENGTHS
    }
    return Plan(
        model=config.model.path,
        method=method.name,
        parameters=algebra.size(agreement.initial),
        clients=len(clients.ids),
        clients_from=clients.source,
        clients_per_round=visits,
        turns=n_turns,
        rounds=config.federation.rounds,
        parts=settled(traffic, visits, config.seed),
        dense_fp32_round_trip=8 * algebra.size(agreement.initial),
        totals=totals(traffic, config.federation, config.seed),
        memory=memory,
        memory_per_worker=of_a_worker(memory, config.runtime.workers),
        memory_row_tokens=length,
        activations=activations,
        memory_advice=advise(config, estimated),
        seconds=measured.seconds if measured else None,
        round_seconds=n_turns * measured.visit if measured else None,
        seconds_reason=reason,
        remarks=remarks(module, config.lora),
    )

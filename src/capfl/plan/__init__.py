"""What a run will cost, before it runs: bytes, memory, time. What `capfl plan` does."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch

from capfl import adapter as algebra
from capfl.config import Config
from capfl.errors import CapflError
from capfl.federation import POOLED
from capfl.methods import build
from capfl.model.base import skeleton
from capfl.model.layers import adapter_shapes
from capfl.plan.advice import advise
from capfl.plan.bytes import dense_fp32_round_trip, mean_parts, measure, totals
from capfl.plan.clients import Clients, find_clients
from capfl.plan.memory import estimate
from capfl.plan.time import Calibration, calibrate, extrapolate, weights_are_here
from capfl.report.plan import Plan
from capfl.roles.agreement import agreements
from capfl.round import sample_size
from capfl.usage import peak_memory


def make_plan(config: Config, calibration: bool = True, room: int | None = None) -> Plan:
    """Measure what messages take, estimate memory, and time a few steps if model and data are here.

    Args:
        calibration: without it nothing is loaded but shapes and data, and no time is given.
        room: bytes of memory that there are; by default those of this machine.

    Raises:
        ConfigError: a name, a target or a partition that does not exist.
        ModelError: the shapes of the model cannot be known.
        DataError: the data are here, but cannot be shared out as the config asks.
    """
    torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
    process = peak_memory()
    method = build(config.method, config.seed)
    module = skeleton(config.model)
    shapes = adapter_shapes(module, config.lora)
    clients = find_clients(config)

    # bytes
    who = [POOLED] if method.pooled else clients.ids
    agreement = agreements(config, algebra.drawn(shapes, config.seed), config.model.path)[method.name]
    choices = all(item.choices for item in clients.items)
    n_visits = sample_size(len(who), config.federation.fraction)
    width = int(cast(Any, module).config.hidden_size)
    traffic = measure(agreement, who, n_visits < len(who), width, choices, n_visits)
    run = totals(traffic, config.federation, config.seed)
    each = list(traffic.values())
    one = each[0]

    # time
    seconds: dict[str, float] | None = None
    measured: Calibration | None = None
    reason = _why_not(config, clients) if calibration else "--no-calibrate was given"
    if not reason:
        try:
            measured, federation = calibrate(config, method, clients)
            seconds = extrapolate(federation, method, measured, one.seconds)
        except CapflError as error:
            reason = str(error)

    # memory
    length = measured.length if measured else config.data.max_length
    letters = config.data.scoring == "letter" and choices
    estimated = partial(
        estimate,
        module=module,
        shapes=shapes,
        length=length,
        answers=measured.answers if measured else 1 if letters else length,
        rows=None if clients.missing else len(clients.items),
        lossy=not (agreement.up.exact and agreement.down.exact),
        log=one.log,
        patched=agreement.method.combine.relays,
        process=process,
    )
    return Plan(
        model=config.model.path,
        method=method.name,
        parameters=algebra.size(agreement.initial),
        clients=len(clients.ids),
        clients_from=clients.source,
        visits=n_visits,
        rounds=config.federation.rounds,
        up=mean_parts([t.up[-1] for t in each]),
        down=mean_parts([t.down[-1] for t in each]),
        first_up=mean_parts([t.up[0] for t in each]),
        first_down=mean_parts([t.down[0] for t in each]),
        catch_up=run.catch_up / run.messages,
        dense_fp32_round_trip=dense_fp32_round_trip(agreement.initial, one.client),
        total_up=run.up,
        total_down=run.down,
        delivery=run.delivery,
        memory=estimated(config),
        advice=advise(config, estimated, room),
        length=length,
        seconds=seconds,
        no_seconds=reason,
    )


def _why_not(config: Config, clients: Clients) -> str:
    """Why time cannot be told, or nothing."""
    if not weights_are_here(config.model.path):
        return f"{config.model.path} is not on this machine, and a plan fetches no weights; give a folder with them"
    return f"the data are not here: {clients.missing}" if clients.missing else ""

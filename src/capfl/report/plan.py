"""What a run will cost, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from capfl.report.tables import size

Parts = Mapping[str, int]


@dataclass(frozen=True)
class Advice:
    """What to do about memory.

    Attributes:
        room: bytes that there are; None if that is not known, as for a device that this machine does not have.
        settings: by their keys, those to change so that the run fits, or takes least if nothing is enough.
        bytes: what the run then takes, by the estimate.
        fits: does it fit, with these settings?
    """

    room: int | None
    settings: Mapping[str, object]
    bytes: int
    fits: bool

    def __str__(self) -> str:
        if self.room is None or (self.fits and not self.settings):
            return ""
        told = f"does not fit into {size(self.room)} with 30 % to spare"
        changes = " ".join(f"--{key} {str(value).lower()}" for key, value in self.settings.items())
        if self.fits:
            return f"{told}; it does, with {size(self.bytes)}, if you add: {changes}"
        least = f" even with {changes}, which takes {size(self.bytes)}" if changes else ""
        return f"{told}{least}; take a smaller model, fewer lora.layers or a smaller data.max_length"


@dataclass(frozen=True)
class Plan:
    """Bytes are those of one client in one round, if not said otherwise: the mean where clients differ by more than the
    length of their ids. Each direction has its parts.
    """

    model: str
    method: str
    parameters: int  # elements of the adapter
    clients: int
    clients_from: str  # where their number comes from
    visits: int  # clients in a round
    rounds: int
    up: Parts  # once residuals and warm-up have settled
    down: Parts  # the same, to a client that took part in the round before
    first_up: Parts
    first_down: Parts
    catch_up: float  # bytes more, as a mean over all messages down, because clients missed rounds
    dense_fp32_round_trip: int  # the whole adapter in float32, both ways
    total_up: int  # all clients, all rounds, and what they say of the final model
    total_down: int  # the same, and the final delivery
    delivery: int
    memory: Mapping[str, int]  # bytes at the peak by what they are for, and ``total``
    length: int  # tokens of a row that ``memory`` reckons with
    advice: Advice
    seconds: Mapping[str, float] | None  # by what they are spent on
    no_seconds: str  # why there are none

    @property
    def bytes_up(self) -> int:
        return sum(self.up.values())

    @property
    def bytes_down(self) -> int:
        return sum(self.down.values())

    @property
    def bytes_round_trip(self) -> int:
        return self.bytes_up + self.bytes_down

    def to_json(self) -> dict[str, Any]:
        """As `capfl plan --json` prints it. Bytes and seconds; ``seconds`` is null where it is not known."""
        return {
            "model": self.model,
            "method": self.method,
            "parameters": self.parameters,
            "clients": self.clients,
            "clients_from": self.clients_from,
            "clients_per_round": self.visits,
            "rounds": self.rounds,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "bytes_round_trip": self.bytes_round_trip,
            "dense_fp32_round_trip": self.dense_fp32_round_trip,
            "parts": {"up": dict(self.up), "down": dict(self.down)},
            "first_round": {
                "bytes_up": sum(self.first_up.values()),
                "bytes_down": sum(self.first_down.values()),
                "parts": {"up": dict(self.first_up), "down": dict(self.first_down)},
            },
            "catch_up_per_message": round(self.catch_up, 1),
            "totals": {
                "bytes_up": self.total_up,
                "bytes_down": self.total_down,
                "bytes": self.total_up + self.total_down,
                "final_delivery": self.delivery,
            },
            "memory": dict(self.memory),
            "memory_row_tokens": self.length,
            "memory_advice": {
                "room": self.advice.room,
                "fits": self.advice.fits,
                "settings": dict(self.advice.settings),
                "bytes": self.advice.bytes,
            },
            "seconds": None if self.seconds is None else round(sum(self.seconds.values()), 1),
            "seconds_parts": None if self.seconds is None else {k: round(v, 2) for k, v in self.seconds.items()},
            "seconds_reason": self.no_seconds or None,
        }


def plan_tables(plan: Plan) -> Group:
    """Bytes of a client and round, then what the whole run takes."""
    told = f"{plan.method} on {plan.model}: {plan.parameters:,} adapter parameters, "
    told += f"{plan.visits} of {plan.clients} clients (from {plan.clients_from}) in each of {plan.rounds} rounds"
    return Group(Text(told), Text(), _messages(plan), Text(), _run(plan))


def _messages(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("bytes per client and round", no_wrap=True)
    for name in ("up", "down", "round trip", ""):
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, up: int, down: int, style: str = "") -> None:
        table.add_row(name, f"{up:,}", f"{down:,}", f"{up + down:,}", "", style=style)

    for part in {**plan.up, **plan.down}:
        up, down = plan.up.get(part, 0), plan.down.get(part, 0)
        if up or down:
            add(part, up, down)
    table.add_section()
    add("in all", plan.bytes_up, plan.bytes_down, style="bold")
    add("first round", sum(plan.first_up.values()), sum(plan.first_down.values()))
    if plan.catch_up:
        mean = f"{plan.catch_up:,.0f}"
        table.add_row("mean catch-up of who missed rounds", "", mean, mean, "")
    ratio = plan.dense_fp32_round_trip / plan.bytes_round_trip
    table.add_row("dense fp32", "", "", f"{plan.dense_fp32_round_trip:,}", f"{ratio:,.3g} times as much")
    return table


def _run(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("the whole run", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("")
    table.add_row("bytes up", size(plan.total_up), "all clients")
    table.add_row("bytes down", size(plan.total_down), f"all clients, {size(plan.delivery)} of it the final delivery")
    memory = {name: n for name, n in plan.memory.items() if name != "total" and n}
    listed = ", ".join(f"{name} {size(n)}" for name, n in memory.items())
    told = f"estimate for rows of {plan.length} tokens: {listed}"
    table.add_row("peak memory", size(plan.memory["total"]), told)
    if advice := str(plan.advice):
        table.add_row("", "", advice)
    if plan.seconds is None:
        table.add_row("time", "unknown", plan.no_seconds)
    else:
        spent = ", ".join(f"{name} {duration(n)}" for name, n in plan.seconds.items() if n >= 0.5)
        table.add_row("time", duration(sum(plan.seconds.values())), spent)
    return table


def duration(seconds: float) -> str:
    """The two largest of hours, minutes and seconds, or tenths of a second."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"

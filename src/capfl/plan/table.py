"""A plan, for people."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from capfl.plan import Plan
from capfl.report.tables import Table, duration, size


def plan_tables(plan: Plan) -> Group:
    """Bytes of a client and round, then what the whole run takes."""
    head = (
        f"{plan.method} on {plan.model}: {plan.parameters:,} adapter parameters, {plan.clients_per_round} of "
        f"{plan.clients} clients (from {plan.clients_from}) in each of {plan.rounds} rounds"
    )
    return Group(Text(head), *map(Text, plan.remarks), Text(), _messages(plan), Text(), _run(plan))


def _messages(plan: Plan) -> Table:
    def row(name: str, up: int, down: int) -> tuple[str, ...]:
        return name, f"{up:,}", f"{down:,}", f"{up + down:,}"

    up, down = plan.parts["up"], plan.parts["down"]
    rows = [row(part, up.get(part, 0), n) for part, n in down.items() if n or up.get(part, 0)]
    ratio = plan.dense_fp32_round_trip / plan.bytes_round_trip
    dense = "dense fp32", "", "", f"{plan.dense_fp32_round_trip:,}, {ratio:,.3g} times as much"
    return Table(
        ("bytes per client and round", "up", "down", "round trip"),
        rows,
        (row("in all", plan.bytes_up, plan.bytes_down), dense),
    )


def _run(plan: Plan) -> Grid:
    total, listed = plan.totals, {name: n for name, n in plan.memory.items() if name != "total" and n}
    memory = ", ".join(f"{name} {size(n)}" for name, n in listed.items())
    delivery = f"all clients, {size(total['final_delivery'])} of it the final delivery"
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column()
    grid.add_row("bytes up", size(total["bytes_up"]), "all clients")
    grid.add_row("bytes down", size(total["bytes_down"]), delivery)
    tokens = f"estimate for rows of {plan.memory_row_tokens} tokens: {memory}"
    grid.add_row("peak memory", size(plan.memory["total"]), tokens)
    if plan.memory_per_worker is not None:
        grid.add_row("each worker", size(plan.memory_per_worker), "of it; the rest is there once")
    lengths = ", ".join(f"{size(n)} for rows of {tokens:,} tokens" for tokens, n in plan.activations.items())
    grid.add_row("activations", "", lengths)
    if advice := str(plan.memory_advice):
        grid.add_row("", "", advice)
    if plan.seconds is None:
        grid.add_row("time", "unknown", plan.seconds_reason)
    else:
        spent = ", ".join(f"{name} {duration(n)}" for name, n in plan.seconds.items() if n >= 0.5)
        alone = "" if plan.memory_per_worker is None else " in one process; workers share clients of a turn"
        grid.add_row("time", duration(sum(plan.seconds.values())), spent + alone)
    if plan.round_seconds is not None:
        turns = f"{plan.turns} turns of {duration(plan.round_seconds / plan.turns)}" if plan.turns > 1 else "training"
        grid.add_row("of a round", duration(plan.round_seconds), f"over sites with a machine like this each: {turns}")
    return grid

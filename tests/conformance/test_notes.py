"""Notes beside an adapter: what a method reports, hears and remembers, through messages and disks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters import CODECS
from capfl.checkpoint import RunFolder
from capfl.methods import METHODS, Factory
from capfl.methods.fedit import add_mean_change, fedit
from capfl.model.base import load_base
from capfl.model.lora import AdaptedModel
from capfl.plan.bytes import measure
from capfl.roles import Agreement, server
from capfl.types import ClientId, ClientState, Notes, ServerState, Update
from fake import CLIENTS, Fake, initial
from support import tiny_config, tiny_run


def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
    listed = list(updates)
    own = {f"own/{u.client}": u.notes["own"] for u in listed}
    count = {"count": torch.tensor([server.round + 1.0])}
    return replace(add_mean_change(server, listed), notes=server.notes | own | count)


def brief(server: ServerState, client: ClientId) -> Notes:
    return {"count": server.notes["count"]} if server.round else {}


def heed(told: Notes, memory: ClientState) -> ClientState:
    return replace(memory, notes=memory.notes | told)


def report(memory: ClientState) -> Notes:
    return {"own": torch.tensor([float(ord(memory.client)), *memory.notes.get("count", torch.tensor([0.0]))])}


NOTING = replace(
    fedit(), name="noting", aggregate=aggregate, brief=brief, heed=heed, report=report,
    kinds={"own": "bf16", "count": "positive"},
)  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
def test_notes_go_both_ways_are_remembered_and_are_counted(codec: str) -> None:
    fake = Fake("fedit", codec)
    fake.agreement = Agreement(NOTING, CODECS[codec], initial(), "base", seed=3)
    fake.state = server.start(fake.agreement)
    records = fake.play(3)
    assert fake.state.notes["count"].tolist() == [3.0]
    for name in CLIENTS:
        assert fake.state.notes[f"own/{name}"].tolist() == [ord(name), 2.0]  # as it was told when round 3 began
        assert fake.memory[name].notes["count"].tolist() == [2.0]
    counted = [{e.direction: e.parts["notes"] for e in record.ledger} for record in records]
    assert counted == [{"down": 0, "up": 5 + 4}, *[{"down": 5 + 3, "up": 5 + 4}] * 2]
    for record in records:
        assert all(sum(e.parts.values()) == e.bytes for e in record.ledger)


def test_a_plan_counts_notes() -> None:
    agreement = Agreement(NOTING, CODECS["default"], initial(), "base", seed=3)
    traffic = measure(agreement, CLIENTS, some_miss=False)["a"]
    assert (traffic.up[-1]["notes"], traffic.down[-1]["notes"]) == (5 + 4, 5 + 3)


def test_a_method_that_asks_for_a_description_gets_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed once by each client of a real run, remembered, and sent where the method sends them."""

    def remember(server: ServerState, updates: Iterable[Update]) -> ServerState:
        listed = list(updates)
        return replace(add_mean_change(server, listed), notes={u.client: u.notes["features"] for u in listed})

    method = replace(
        fedit(), describes=True, kinds={"features": "bf16"}, aggregate=remember,
        report=lambda memory: {"features": memory.notes["features"]},
    )  # fmt: skip
    monkeypatch.setitem(METHODS, "fedit", Factory(lambda config, seed: method))
    tiny_run(runs)
    config = tiny_config(runs)
    template = AdaptedModel(load_base(config.model), config.lora).initial_adapter(0)
    state = RunFolder(runs).server(template)
    assert state is not None
    memories = {c: RunFolder(runs).clients(template, ClientState).load(c, before=99) for c in state.notes}
    assert len(memories) == 2
    for name, memory in memories.items():
        assert torch.equal(memory.notes["features"].bfloat16().float(), state.notes[name])
        assert (len(memory.notes["deviation"]), len(state.notes[name])) == (32, 3 * 32)
    first, second = state.notes.values()
    assert not torch.equal(first, second)

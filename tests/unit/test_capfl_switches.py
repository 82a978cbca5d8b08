"""CA-PFL beyond the paper: factors in turn, and a gate in the forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch

from adapters import CODECS
from capfl import adapter as algebra
from capfl import checkpoint
from capfl.config.schema import LoraConfig, MethodConfig, ModelConfig
from capfl.methods import build
from capfl.model import tiny
from capfl.model.base import load_base
from capfl.model.lora import AdaptedModel
from capfl.roles import Agreement
from capfl.roles import client as role
from capfl.types import Adapter, ClientState, Trained
from fake import CLIENTS, Fake, bits, initial
from support import tiny_run

SWITCHES = ({"alternate": True}, {"gate": True}, {"alternate": True, "gate": True})


def fake(codec: str, **settings: object) -> Fake:
    made = Fake("ca-pfl", codec)
    made.agreement = Agreement(build(MethodConfig(name="ca-pfl", **settings)), CODECS[codec], initial(), "base", seed=3)
    return made


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(s))
def test_they_go_with_every_codec_and_with_ranks(codec: str, switches: dict[str, object]) -> None:
    """As in the conformance suite: states survive bytes, clients know what the server says, order does not matter."""
    forwards, backwards = (fake(codec, rank_floor=0.9, **switches) for _ in range(2))
    backwards.backwards = True
    forwards.play(5)
    backwards.play(5)
    assert checkpoint.server_to_bytes(forwards.state) == checkpoint.server_to_bytes(backwards.state)
    assert forwards.state.groups
    assert any(not forwards.agreement.method.alive(memory.notes).all() for memory in forwards.memory.values())


@pytest.mark.parametrize("budget", ["kappa", "uniform"])
def test_one_factor_travels_in_a_round(budget: str) -> None:
    one, both = fake("default", alternate=True, budget=budget), fake("default", budget=budget)
    one.play(6)
    both.play(6)
    for at in range(6):
        for name in CLIENTS:
            assert {key[-1] for key in one.arrived[name][at]} == {"AB"[(at + 1) % 2]}
            assert set(one.changes[name][at]) == set(algebra.factor(initial(), "AB"[(at + 1) % 2]))
    values = [sum(e.parts["values"] for r in f.play(2) for e in r.ledger) for f in (one, both)]
    assert values[0] == pytest.approx(values[1] / 2, rel=0.2)


def test_the_mean_of_a_groups_products_is_the_product_of_its_means() -> None:
    played = fake("fp32", alternate=True, peers="all", rank_floor=0.0)
    assert played.agreement.method.exact
    for _ in range(4):
        before = played.state.adapter
        played.play(1)
        weights = {name: 10.0 * (ord(name) - 96) for name in CLIENTS}
        for module, down, up in algebra.factors(played.state.adapter):
            mean = torch.zeros(len(up), down.shape[1])
            for name in CLIENTS:
                own = algebra.add(before, played.arrived[name][-1])
                mean += weights[name] / sum(weights.values()) * own[f"{module}.B"] @ own[f"{module}.A"]
            torch.testing.assert_close(up @ down, mean, rtol=1e-4, atol=1e-6)


def memory_of(kappa: list[float]) -> ClientState:
    alpha = torch.full((4,), 3.0)
    notes = {"alpha": alpha, "beta": alpha / torch.tensor(kappa), "items": torch.tensor([10.0])}
    return ClientState("a", known=initial(), notes=notes)


def test_the_gate_is_the_importance_over_its_mean_and_goes_into_b() -> None:
    agreement = fake("fp32", gate=True).agreement
    memory = memory_of([0.01, 0.02, 0.03, 0.02])
    term = role.penalty(memory, agreement)
    assert term is not None
    torch.testing.assert_close(term.gate, torch.tensor([0.5, 1.0, 1.5, 1.0]))
    found = role.effective(initial(), memory, agreement)
    for name in algebra.factor(initial(), "A"):
        assert torch.equal(found[name], initial()[name])
    torch.testing.assert_close(found["q.B"], initial()["q.B"] * torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(found["v.B"], initial()["v.B"] * torch.tensor([1.5, 1.0]))
    plain = fake("fp32").agreement
    assert bits(role.effective(initial(), memory, plain)) == bits(initial())


def test_a_rank_is_not_felt_less_for_having_a_small_gate() -> None:
    """The loss is as sensitive to a gate whatever it is now: training reports g dL/dg."""
    method = fake("fp32", gate=True, rank_floor=0.0).agreement.method
    shown = []
    for kappa in ([0.01, 0.02, 0.03, 0.02], [0.02, 0.02, 0.02, 0.02]):
        memory = memory_of(kappa)
        memory = replace(memory, notes=memory.notes | {f"prior {n}": memory.notes[n] for n in ("alpha", "beta")})
        memory = replace(memory, notes=memory.notes | {"evidence": torch.full((4,), 0.02)})
        gate = torch.tensor(kappa) / 0.02
        _, after = method.collect(
            initial(), Trained(initial(), (1.0,), gate * torch.tensor([1.0, 2.0, 3.0, 4.0])), memory
        )
        shown.append(after.notes["evidence"])
    torch.testing.assert_close(shown[0], shown[1])


def test_what_is_sent_has_no_gate_in_it() -> None:
    """The fake trains no model, so with and without a gate the same changes are made, sent and averaged."""
    gated, plain = (fake("fp32", gate=on, rank_floor=0.0) for on in (True, False))
    gated.play(3)
    plain.play(3)
    assert bits(gated.state.adapter) == bits(plain.state.adapter)
    for name in CLIENTS:
        assert bits(gated.memory[name].adapter) == bits(plain.memory[name].adapter)


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(s))
def test_exported_logits_are_the_trained_ones(
    runs: Path, switches: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stock PEFT makes of a client's adapter is what the gated model says of the factors without it."""
    kept: dict[str, tuple[Adapter, torch.Tensor]] = {}
    fold = role.effective

    def watched(adapter: Adapter, memory: ClientState, agreement: Agreement) -> Adapter:
        term = role.penalty(memory, agreement)
        assert term is not None
        n = sum(algebra.ranks(adapter).values())
        kept[memory.client] = adapter, torch.ones(n) if term.gate is None else term.gate
        return fold(adapter, memory, agreement)

    monkeypatch.setattr("capfl.roles.answer.effective", watched)
    settings = {f"method__{name}": value for name, value in switches.items()}
    tiny_run(runs, method__name="ca-pfl", federation__rounds=3, train__learning_rate=0.05, **settings)
    ids = torch.arange(1, 13).reshape(2, 6)
    assert len(kept) == 2
    for client, (adapter, gate) in kept.items():
        assert ("gate" in switches) == (float(gate.std()) > 0.01)
        ours = AdaptedModel(load_base(ModelConfig(path="tiny")), LoraConfig(layers="top:2"))
        ours.write(adapter)
        ours.gate(gate)
        stock = peft.PeftModel.from_pretrained(tiny.model(), str(runs / "adapters" / "clients" / client)).eval()
        with torch.no_grad():
            expected = stock(input_ids=ids).logits
            found = ours.logits(ids, torch.arange(12), ours.lower(ids)).reshape(2, 6, -1)
        torch.testing.assert_close(found, expected)

"""What an update may claim, to the last element."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import CODECS
from capfl.config.schema import MethodConfig, TrainConfig
from capfl.errors import WireError
from capfl.methods import build
from capfl.methods.peers import Description
from capfl.roles import door, server
from capfl.roles.agreement import Agreement
from capfl.roles.limits import Limits
from capfl.types import Adapter, Introduction, Update
from capfl.wire import encode_update
from capfl.wire.body import pack
from capfl.wire.layout import Layout
from parts import CLIENTS, INITIAL, N

LIMITS = Limits(TrainConfig(steps=3, learning_rate=0.5), max_items=100, max_norm=2.0, described={})


def agreement(method: str = "fedit", codec: str = "fp32", limits: Limits | None = LIMITS) -> Agreement:
    return Agreement(build(MethodConfig(name=method)), CODECS[codec], INITIAL, "base", seed=3, limits=limits)


def update(change: Adapter, **claims: object) -> Update:
    return replace(Update(1, "a", change, n_train=10, steps=3, loss=1.0), **claims)  # type: ignore[arg-type]


def filled(value: float, *names: str) -> Adapter:
    return {name: torch.full_like(t, value) for name, t in INITIAL.items() if not names or name in names}


def admit(said: Update, agreed: Agreement) -> float:
    return door.admit(said, agreed.method.start(INITIAL, CLIENTS), agreed)


# -- bounds --------------------------------------------------------------------------------------------------------


def test_the_longest_update_by_hand() -> None:
    assert LIMITS.longest(n_train=10, n_elements=16, gain=1.0) == 2 * 0.5 * 3 * 4
    assert LIMITS.longest(n_train=10, n_elements=16, gain=4.0) == 4 * 2 * 0.5 * 3 * 4
    by_epochs = replace(LIMITS, train=TrainConfig(epochs=2, batch_size=8, learning_rate=0.5))
    assert by_epochs.longest(n_train=17, n_elements=1, gain=1.0) == 2 * 0.5 * (2 * 3)


def test_a_norm_just_within_and_just_beyond() -> None:
    """180 elements, two times half a unit in each of three steps: 3 times the root of 180."""
    assert admit(update(filled(2.999)), agreement()) == pytest.approx(2.999 * 180**0.5)
    with pytest.raises(WireError, match=r"norm 40\.2626; federation\.max_norm lets in 40\.2492"):
        admit(update(filled(3.001)), agreement())
    admit(update(filled(3e30)), agreement(limits=None))


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"n_train": 101}, "101 training items, federation.max_items is 100"),
        ({"steps": 4}, "4 steps, 10 items make 3"),
    ],
)
def test_items_and_steps(claims: dict[str, object], message: str) -> None:
    admit(update(filled(0.1), n_train=100, steps=3), agreement())
    with pytest.raises(WireError, match=message):
        admit(update(filled(0.1), **claims), agreement())


def test_a_description_has_the_models_width() -> None:
    agreed = agreement("ca-pfl", limits=replace(LIMITS, described={"features": 6, "deviation": 2, "answers": 1}))
    said = Description(torch.zeros(6), torch.zeros(2), torch.ones(1))
    introduction = Introduction(1, "a", 10, said)
    door.admit_introduction(introduction, agreed)
    for wrong, message in (
        (replace(introduction, grouping=replace(said, deviation=torch.zeros(3))), "3 numbers of deviation, expected 2"),
        (
            replace(introduction, grouping=replace(said, answers=torch.zeros(1))),
            "answers has numbers that are not",
        ),
        (replace(introduction, grouping=None), "does not describe the client's data"),
        (replace(introduction, n_train=101), "101 training items, federation.max_items is 100"),
    ):
        with pytest.raises(WireError, match=message):
            door.admit_introduction(wrong, agreed)
    door.admit_introduction(replace(introduction, n_train=101), replace(agreed, limits=None))


# -- tensors and elements ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "round", "name"),
    [("ffa-lora", 1, "q.A"), ("fedsa-lora", 1, "v.B"), ("rolora", 1, "q.A"), ("rolora", 2, "q.B"), ("local", 1, "q.A")],
)
def test_a_tensor_that_the_method_does_not_send(method: str, round: int, name: str) -> None:
    admit(update(filled(0.0), round=round), agreement(method))
    with pytest.raises(WireError, match=f"{name!r}, which {method} does not send in round {round}"):
        admit(update(filled(0.1, name), round=round), agreement(method))


@pytest.mark.parametrize("codec", ["default", "random", "unbiased-bf16"])
def test_an_element_that_chance_has_left_out_may_not_be_sent_all_the_same(codec: str) -> None:
    """It would make the server's answer scale what all the others have sent."""
    agreed = agreement(codec=codec)
    plain = filled(0.1)
    reach = agreed.up.reach(plain, INITIAL, 1)
    honest = agreed.up.decode(memoryview(agreed.up.encode(plain, INITIAL, 1)), INITIAL, 1)
    assert all(torch.equal(t != 0, reach[name]) for name, t in honest.items())
    admit(update(honest), agreed)

    layout = Layout.of(plain, INITIAL)
    outside = np.flatnonzero(layout.flatten({name: (~t).float() for name, t in reach.items()}))
    body = pack(layout.flatten(plain), outside[:1], agreed.up.values, layout, INITIAL)
    said, _ = server.read_update(
        encode_update(update({}), body, agreed.up, agreed.schema), "a", agreed.method.start(INITIAL), agreed
    )
    with pytest.raises(WireError, match="has values where client 'a' sends none in round 1"):
        admit(said, agreed)


@pytest.mark.parametrize("codec", ["default", "random"])
def test_the_budget_of_a_rank_is_the_servers_to_set(codec: str) -> None:
    agreed = agreement("ca-pfl", codec)
    prior = agreed.method.start(INITIAL).ranks.prior  # type: ignore[union-attr]

    def said(importance: np.ndarray) -> Update:  # type: ignore[type-arg]
        body = agreed.up.encode(filled(0.1), INITIAL, 1, importance)
        return update(agreed.up.decode(memoryview(body), INITIAL, 1), ranks=prior)

    admit(said(np.ones(N)), agreed)
    with pytest.raises(WireError, match="has values where"):
        admit(said(np.arange(1.0, N + 1)), agreed)


def test_what_may_be_sent_follows_from_the_number_of_the_version_and_not_from_the_round() -> None:
    """In the second turn of round 1 the third of the elements that comes next is sent."""
    agreed = agreement(codec="default")
    later = replace(agreed.method.start(INITIAL, CLIENTS), version=1)
    for number, state in ((1, agreed.method.start(INITIAL, CLIENTS)), (2, later)):
        body = agreed.up.encode(filled(0.1), INITIAL, number)
        said = update(agreed.up.decode(memoryview(body), INITIAL, number))
        door.admit(said, state, agreed)
        with pytest.raises(WireError, match="has values where client 'a' sends none in round 1"):
            door.admit(said, replace(state, version=1 - state.version), agreed)

"""Scores with secure aggregation: the server learns those of all clients together."""

from __future__ import annotations

import numpy as np
import pytest

from capfl.config import load_config
from capfl.config.schema import FederationConfig
from capfl.errors import ClientError, ConfigError, WireError
from capfl.evaluation import of_all
from capfl.roles.agreement import agreements
from capfl.roles.cohort import secure_scores
from capfl.roles.talk import Talk
from capfl.types import ClientId, Tally
from capfl.wire.secure import decode_masked
from capfl.wire.totals import Total
from fake import initial
from masked import LYING, ON, SKIP, World, n_test


def asked(world: World, config: FederationConfig = SKIP) -> tuple[Total, list[ClientId]]:
    done: list[ClientId] = []
    talk = Talk("evaluate", world.state, world.agreement, world.exchange, config)
    total, talks = secure_scores(world.clients, talk, done.append)
    assert sum(e.bytes for one in talks for e in one.ledger) == sum(n for _, _, n in world.crossed)
    return total, done


@pytest.mark.parametrize(("privacy", "gone"), [(ON, 0), (ON, 1), (LYING, 0), (LYING, 1)])
def test_the_sum_of_scores_is_that_of_those_who_answer(privacy: object, gone: int) -> None:
    world = World(5, privacy=privacy)  # type: ignore[arg-type]
    world.play()
    world.crossed.clear()
    world.drop("evaluate", *world.clients[:gone])
    total, done = asked(world)
    present = world.clients[gone:]
    (said,) = total.tasks
    items = sum(map(n_test, present))
    assert (said.task, said.clients, said.n_train, said.test.number) == ("choices", len(present), 50 - 10 * gone, items)
    assert (said.test.chance, said.test.majority) == (0.25, 0.5)
    right = {model: score.metrics["accuracy"] for model, score in said.scores.items()}
    assert right == {m: Tally(k * len(present), items) for k, m in enumerate(("base", "global", "personal"))}
    assert set(total.ranks.values()) == {2.0}
    assert done == world.clients
    (row,) = of_all(total, 2).values()
    assert (row.client, row.n_train, row.test.number) == ("all clients", said.n_train, items)


def test_no_reply_has_a_number_of_its_client_in_clear() -> None:
    world = World(3)
    world.play()
    world.crossed.clear()
    asked(world)
    summed = world.agreement.totals(3)
    seen = set()
    for client in world.clients:
        reply = world.replies["evaluate", client]
        assert reply[20:36] == bytes(16)  # items, steps and loss
        masked, _ = decode_masked(reply, world.agreement.up, world.agreement.schema, summed)
        seen.add(masked.whole.values.tobytes())
        with pytest.raises(WireError):
            summed.read(masked.whole, 1)
    assert len(seen) == 3


def test_two_that_are_left_have_no_sum() -> None:
    world = World(4)
    world.play()
    world.drop("evaluate", "c00", "c01")
    with pytest.raises(ClientError, match=r"there is no sum of scores; 2 of 4 clients have answered"):
        asked(world)


def test_a_score_of_its_own_is_said_by_nobody() -> None:
    world = World(3)
    world.play()
    with pytest.raises(WireError, match="a client says none"):
        world.answer("validate", "c00", world.requests["train", "c00"])
    with pytest.raises(WireError, match=r"spent|not with this client's own"):
        world.answer("evaluate", "c00", world.requests["keys", "c00"])  # among no others


def test_alone_for_the_sake_of_comparison_nobody_says_more() -> None:
    """The reference ``local``: its rounds show no items and no loss, and its scores are summed."""
    config = load_config(None, {"method.name": "fedit", "privacy.secure_aggregation": "honest-server"})
    agreed = agreements(config, initial(), "base")
    assert agreed["local"].secure
    assert agreed["local"].method.says_nothing("c00")
    world = World(3)
    world.agreement, world.state = agreed["local"], agreed["local"].method.start(initial(), world.clients)
    record = world.play()
    assert record.clients == tuple(world.clients)
    assert not record.losses
    assert np.isnan(record.loss)
    assert all(world.replies["train", client][20:36] == bytes(16) for client in world.clients)
    world.crossed.clear()
    total, _ = asked(world)
    assert list(total.tasks[0].scores) == ["personal"]


def test_a_reference_that_scores_single_clients_is_refused() -> None:
    given = {"method.name": "fedit", "privacy.secure_aggregation": "honest-server"}
    config = load_config(None, given | {"evaluation.references": ["centralised"]})
    with pytest.raises(ConfigError, match=r"^evaluation\.references: centralised .*leave it out"):
        agreements(config, initial(), "base")

"""What every method keeps to, under every codec. A new method or codec is tested here by being in its table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters import CODECS, same, total
from capfl import adapter as algebra
from capfl import checkpoint
from capfl.config.schema import FederationConfig, MethodConfig
from capfl.engines.debug import debug
from capfl.engines.serial import serial
from capfl.errors import ConfigError
from capfl.experiment import run
from capfl.methods import METHODS, build
from capfl.roles import Agreement, server
from capfl.round import run_round
from capfl.types import Adapter, ClientId, ServerState
from fake import CLIENTS, Fake, averaged, bits, codec_of, initial
from support import tiny_config

SOME = FederationConfig(fraction=0.6)  # two of the three in each round
FORGETS = ["flora"]  # its factors are drawn anew, so a residual of the old ones would be for nothing
PRECISION = {"fp32": 1e-6, "bf16": 2e-4, "8bit": 2e-4, "4bit": 4e-3, "ternary-dense": 0.03}


every_codec = pytest.mark.parametrize("codec", CODECS)
every_method = pytest.mark.parametrize("method", METHODS)
# whose server adds the mean change as it is; the others' products of factors are in unit/test_aggregation.py
every_plain_mean = pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in ("lora-fair", "flexlora", "flora", "hetlora", "flasc")]
)


@every_codec
@every_method
def test_states_survive_bytes_and_the_order_of_visits_does_not_matter(method: str, codec: str) -> None:
    forwards, backwards = Fake(method, codec), Fake(method, codec)
    backwards.backwards = True
    forwards.play()
    backwards.play()
    assert forwards.state.round == 3
    assert checkpoint.server_to_bytes(forwards.state) == checkpoint.server_to_bytes(backwards.state)
    for name in CLIENTS:
        assert checkpoint.client_to_bytes(forwards.memory[name]) == checkpoint.client_to_bytes(backwards.memory[name])
        assert forwards.memory[name].steps == 6


@every_codec
@pytest.mark.parametrize("method", [name for name in METHODS if build(MethodConfig(name=name)).has_global])
def test_a_client_that_has_been_told_has_the_servers_adapter(method: str, codec: str) -> None:
    """Whole, with the factors that do not travel: so it can score it."""
    fake = Fake(method, codec)
    fake.play(4, SOME)
    for name in CLIENTS:
        told = fake.told(name, server.request(fake.state, name, fake.agreement).blob)
        assert bits(fake.agreement.whole(told.known)) == bits(fake.state.told(name).whole)


@every_codec
@every_method
def test_the_ledger_is_the_sum_of_the_messages(method: str, codec: str) -> None:
    fake = Fake(method, codec)
    records = fake.play(5, SOME)
    for direction in ("down", "up"):
        counted = sum(e.bytes for r in records for e in r.ledger if e.direction == direction)
        assert counted == sum(n for d, n in fake.sizes if d == direction) > 0
    for record in records:
        for entry in record.ledger:
            assert sum(entry.parts.values()) == entry.bytes
            assert all(n >= 0 for n in entry.parts.values())


@every_codec
@every_method
def test_what_arrived_and_what_is_left_sum_to_what_changed(method: str, codec: str) -> None:
    """For every client, however often it took part. A residual that is given up or shrunk is lost, and said to be."""
    fake = Fake(method, codec)
    fake.play(7, SOME)
    feedback = fake.agreement.up.compensation == "feedback"
    for name in CLIENTS:
        assert 1 <= len(fake.changes[name]) < 7
        residual = fake.memory[name].residual
        since = -1 if method in FORGETS else 0
        if not fake.agreement.version_0:
            assert fake.arrived[name] == [{}] * len(fake.changes[name])
        elif feedback and CODECS[codec].residual_decay == 1:
            got = total([*fake.arrived[name][since:], residual], initial())
            for key, t in total(fake.changes[name][since:], initial()).items():
                torch.testing.assert_close(got[key], t, atol=1e-7, rtol=0)
            assert bool(residual) != fake.agreement.up.exact
        elif not feedback:
            assert residual == {}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "flasc"])
def test_what_clients_have_sent_does_not_count_twice(method: str) -> None:
    """By a random mask, changes come scaled for what is left out. The answer is not scaled once more for the same."""
    fake = Fake(method, "unbiased-bf16")
    for _ in range(4):
        before = fake.state.known
        fake.play(1)
        target = fake.agreement.method.broadcast(fake.aggregated)
        for key, t in fake.state.known.items():
            step = target[key] - before[key]
            assert float((t - target[key]).abs().max()) <= 0.01 * float(step.abs().max())


@pytest.mark.parametrize("method", ["flexlora", "hetlora"])
def test_a_part_of_an_answer_in_full_is_refused(method: str) -> None:
    made = build(MethodConfig(name=method))
    with pytest.raises(ConfigError, match=f"codec.down_density: {method} rewrites"):
        Agreement(made, CODECS["default"].model_copy(update={"down_density": 0.5}), initial())
    late = CODECS["default"].model_copy(update={"down_density": 0.5, "compensation": "feedback"})
    assert Agreement(made, late, initial()).down.density == 0.5


@every_codec
@every_plain_mean
def test_a_message_has_the_right_scale(method: str, codec: str) -> None:
    """The residual would repair a wrong one in later rounds; it must not have to.

    No multiple of a message would be nearer to what it was to say. Unless it is to be right on average: then it has,
    along what it was to say, the length of that.
    """
    fake = Fake(method, codec)
    unbiased = fake.agreement.up.unbiased
    fake.play(8 if unbiased else 3)

    def dot(a: Adapter, b: Adapter) -> float:
        return sum(float((a[key].double() * t.double()).sum()) for key, t in b.items())

    if not fake.agreement.version_0:
        assert all(said == {} for _, said in fake.sent)
    elif unbiased:
        along = sum(dot(whole, said) for whole, said in fake.sent)
        assert abs(along / sum(dot(whole, whole) for whole, _ in fake.sent) - 1) < 0.1
    else:
        assert all(abs(dot(whole, said) / dot(said, said) - 1) < 0.1 for whole, said in fake.sent)


@every_codec
@every_method
def test_whoever_misses_rounds_ends_up_knowing_the_same(method: str, codec: str) -> None:
    fake = Fake(method, codec)
    for _ in range(5):
        fake.play(1, FederationConfig(fraction=0.3))  # one of the three; the exchange checks what it knows
        for name in [*CLIENTS, "new"]:
            message = server.request(fake.state, name, fake.agreement)
            assert bits(fake.told(name, message.blob).known) == bits(fake.state.told(name).known)


@every_codec
@every_method
def test_a_client_that_lost_its_disk_is_asked_again_and_goes_on(method: str, codec: str) -> None:
    fake = Fake(method, codec)
    policy = FederationConfig(on_failure="retry")
    fake.play(3, policy)
    fake.memory["b"] = fake.agreement.method.init_client("b", fake.agreement.initial)
    fake.changes["b"].clear()
    (record,) = fake.play(1, policy)
    assert record.clients == ("a", "b", "c")
    assert [failure.client for failure in record.failures] == ([] if fake.agreement.always_whole else ["b"])
    assert fake.play(1, policy)[0].failures == ()


@pytest.mark.parametrize("codec", PRECISION)
@every_plain_mean
def test_the_mean_change_stays_within_the_codecs_precision(method: str, codec: str) -> None:
    """What the server aggregates, and what clients know of it: each has been through the codec."""
    fake = Fake(method, codec)
    fake.play(1)
    if not fake.agreement.version_0:
        assert same(fake.state.adapter, fake.agreement.initial)
        assert fake.state.known == {}
        return
    parts = [(fake.changes[name][0], 10.0 * (ord(name) - 96)) for name in CLIENTS]
    expected = algebra.add(initial(), algebra.weighted_mean(parts))
    for key, t in expected.items():
        torch.testing.assert_close(fake.state.adapter[key], t, atol=PRECISION[codec], rtol=0)
    for key, t in algebra.unpatched(fake.state.known).items():
        torch.testing.assert_close(t, expected[key], atol=2 * PRECISION[codec], rtol=0)


@every_codec
@every_method
def test_a_whole_run_is_the_same_on_every_engine(method: str, codec: str, runs: Path) -> None:
    given = codec_of(method, codec).model_dump(exclude_unset=True)
    changes = {f"codec__{key}": value for key, value in given.items()}
    states = []
    for name, engine in (("serial", serial), ("debug", debug)):
        out = runs / name
        summary, _ = run(tiny_config(out, method__name=method, data__items=24, **changes), engine)
        states.append({p.name: p.read_bytes() for p in sorted((out / "state").rglob("*")) if p.is_file()})
        personal = [row.personal for row in summary.rows]
        assert all(value is None for value in personal) == build(MethodConfig(name=method)).pooled
    assert states[0] == states[1]


@every_codec
@every_method
def test_a_round_does_not_depend_on_a_lost_message_being_encoded_twice(method: str, codec: str) -> None:
    fake = Fake(method, codec)
    fake.play(2, SOME)
    for again in (False, True):
        asked = [server.request(fake.state, "a", fake.agreement, again) for _ in range(2)]
        assert asked[0] == asked[1]


# -- nothing is added to federated averaging where nothing is compressed ---------------------------------------


@pytest.mark.parametrize("clients", [["a"], CLIENTS])
def test_dense_fp32_is_federated_averaging_bit_for_bit(clients: list[ClientId]) -> None:
    fake = Fake("fedit", "fp32")
    state: ServerState = fake.state
    for _ in range(4):
        fake.state = state
        state, _ = run_round(state, clients, fake.agreement, fake.exchange, FederationConfig(), seed=0)
    assert bits(state.adapter) == bits(state.known) == bits(averaged(clients, 4))

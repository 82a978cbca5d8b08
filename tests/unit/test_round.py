"""One round against exchanges that answer without any model: who is asked, what counts, what a failure does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfl.config.schema import CodecConfig, FederationConfig, MethodConfig
from capfl.errors import ClientError
from capfl.methods import build
from capfl.roles.agreement import Agreement
from capfl.round import run_round, sample, validate_round
from capfl.types import (
    EVERYBODY,
    Adapter,
    ClientId,
    Entry,
    Failure,
    Group,
    Kind,
    Request,
    RoundRecord,
    ServerState,
    Update,
    Validation,
)  # fmt: skip
from capfl.wire import Codec, decode_broadcast, encode_update, encode_validation, schema_hash, up_codec
from scored import right

START = {"m.A": torch.tensor([[1.0, 2.0]]), "m.B": torch.tensor([[0.0]])}
AGREED = Agreement(build(MethodConfig(name="fedit")), CodecConfig(values="fp32"), START)
CLIENTS = ["a", "b", "c"]
STEP = {"a": 1.0, "b": 2.0, "c": 4.0}
Reply = Callable[[int], bytes | Failure]


def after(rounds: int, log: tuple[bytes, ...] = (), **changes: object) -> ServerState:
    return ServerState(rounds, {EVERYBODY: Group(START, START, log)}, version=rounds, **changes)  # type: ignore[arg-type]


def update(client: ClientId, round: int, **changes: object) -> bytes:
    change = {name: torch.full_like(t, STEP[client]) for name, t in START.items()}
    plain = Update(round, client, {}, n_train=2, steps=3, loss=STEP[client] / 2)
    return encoded(replace(plain, **changes), change, AGREED.up, START)  # type: ignore[arg-type]


def encoded(message: Update, change: Adapter, codec: Codec, template: Adapter) -> bytes:
    return encode_update(message, codec.encode(change, template, message.round), codec, schema_hash(template, ""))


class Answering:
    """Answers well, except where ``wrong`` has a reply for a client, so many times; keeps what it was sent."""

    def __init__(self, wrong: Mapping[ClientId, Reply] | None = None, times: int = 99) -> None:
        self.wrong, self.times = dict(wrong or {}), times
        self.calls: list[list[ClientId]] = []
        self.sent: list[tuple[ClientId, bytes]] = []

    def __call__(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        self.calls.append(list(clients))
        for client in clients:
            self.sent.append((client, request(client)))
            times = sum(name == client for name, _ in self.sent)
            fails = client in self.wrong and times <= self.times
            yield client, self.wrong[client](round) if fails else self.answer(kind, client, round)

    def answer(self, kind: Kind, client: ClientId, round: int) -> bytes:
        if kind == "train":
            return update(client, round)
        return encode_validation(Validation(round, client, right(1, 4, 8.0)), AGREED.up, AGREED.schema)


def once(exchange: Answering, start: ServerState | None = None, **config: object) -> tuple[ServerState, RoundRecord]:
    return run_round(start or after(0), CLIENTS, AGREED, exchange, FederationConfig(**config), 0)  # type: ignore[arg-type]


def fails(client: ClientId, code: str = "internal") -> dict[ClientId, Reply]:
    return {client: lambda round: Failure(client, "power", "gone", code)}


def b_of(state: ServerState) -> float:
    return float(state.everybody.adapter["m.B"])


# -- sampling ------------------------------------------------------------------------------------------------


@given(st.sets(st.text(min_size=1, max_size=4), min_size=1, max_size=12), st.floats(0.01, 1.0), st.integers(1, 9))
def test_a_sample_is_sorted_without_repetition_and_of_the_right_size(
    clients: set[str], fraction: float, round: int
) -> None:
    drawn = sample(list(clients), fraction, 3, round)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= clients
    assert len(drawn) == max(1, int(fraction * len(clients) + 0.5))


def test_samples_by_hand() -> None:
    ten = [f"{k:02d}" for k in range(10)]
    sizes = {fraction: len(sample(ten, fraction, 0, 1)) for fraction in (0.01, 0.14, 0.15, 0.25, 0.5, 1.0)}
    assert sizes == {0.01: 1, 0.14: 1, 0.15: 2, 0.25: 3, 0.5: 5, 1.0: 10}
    assert sample(ten[::-1], 0.3, 0, 1) == sample(ten, 0.3, 0, 1)
    assert len({tuple(sample(ten, 0.3, 0, round)) for round in range(1, 9)}) > 1
    assert len({tuple(sample(ten, 0.3, seed, 1)) for seed in range(8)}) > 1
    drawn = [client for round in range(1, 1001) for client in sample(ten, 0.3, 0, round)]
    counts = [drawn.count(client) for client in ten]
    assert 250 < min(counts) <= max(counts) < 350  # 300 with a standard deviation of 14.5


def test_only_the_sampled_clients_are_asked_and_named() -> None:
    exchange = Answering()
    _, record = once(exchange, fraction=0.5)
    assert exchange.calls == [sample(CLIENTS, 0.5, 0, 1)]
    assert list(record.clients) == exchange.calls[0]
    assert len(record.clients) == 2


# -- a round in which all goes well ----------------------------------------------------------------------------


def test_a_round_by_hand() -> None:
    exchange, start = Answering(), after(4, versions={"a": 3, "d": 1}, visits={"a": 2})
    state, record = once(exchange, start)
    assert state.round == record.round == 5
    torch.testing.assert_close(state.everybody.adapter["m.A"], torch.tensor([[1 + 7 / 3, 2 + 7 / 3]]))
    assert b_of(state) == pytest.approx(7 / 3)
    assert torch.equal(state.everybody.known["m.B"], state.everybody.adapter["m.B"])  # by an exact codec
    assert state.versions == {"a": 4, "b": 4, "c": 4, "d": 1}
    assert state.visits == {"a": 3, "b": 1, "c": 1}
    assert record.clients == ("a", "b", "c")
    assert record.losses == {"a": 0.5, "b": 1.0, "c": 2.0}
    assert record.loss == pytest.approx(3.5 / 3)
    assert record.steps == {"a": 3, "b": 3, "c": 3}
    assert record.norms == pytest.approx({name: step * 3**0.5 for name, step in STEP.items()})
    assert (record.failures, record.validation_loss, record.groups) == ((), None, {})
    for client, blob in exchange.sent:
        message = decode_broadcast(blob, AGREED.down, AGREED.schema)
        assert (message.round, message.client) == (5, client)


def test_weights_are_training_items() -> None:
    exchange = Answering({"a": lambda round: update("a", round, n_train=6)})
    state, _ = once(exchange)
    assert b_of(state) == pytest.approx((6 * 1 + 2 * 2 + 2 * 4) / 10)


def test_the_ledger_is_the_length_of_what_was_sent() -> None:
    exchange = Answering()
    _, record = once(exchange)
    # 38 bytes of header, 1 of client id, 4 of checksum; with values two sections, and 1 byte for the list of tensors
    nothing = dict.fromkeys(("positions", "scales", "records"), 0)
    down = nothing | {"header": 43, "values": 0, "catch-up": 0}  # before round 1 there is no news
    up = nothing | {"header": 43 + 2 * 5 + 1, "values": 12}
    expected = []
    for client, blob in exchange.sent:
        expected += [Entry(1, client, "down", len(blob), down), Entry(1, client, "up", len(update(client, 1)), up)]
    assert list(record.ledger) == expected
    assert (record.bytes_up, record.bytes_down) == (3 * 66, 3 * 43)


def test_a_request_is_encoded_when_it_is_sent_and_a_reply_used_when_it_comes() -> None:
    """So that one message at a time is in memory, however many clients there are."""
    events = []

    def engine(
        kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        for client in clients:
            events.append(f"ask {client}")
            request(client)
            yield client, update(client, round)
            events.append(f"used {client}")

    run_round(after(0), CLIENTS, AGREED, engine, FederationConfig(), 0)
    assert events == ["ask a", "used a", "ask b", "used b", "ask c", "used c"]


@pytest.mark.parametrize("replies", ["ab", "", "abca", "cba", "abb"])
def test_an_engine_must_hand_on_one_reply_a_client_in_order(replies: str) -> None:
    """Nobody is dropped without a word."""
    for policy in ("stop", "skip", "retry"):
        with pytest.raises(RuntimeError, match="the engine was to ask a, b, c, and gave replies of"):
            run_round(
                after(0), CLIENTS, AGREED, lambda kind, round, *_: ((c, update(c, round)) for c in replies),
                FederationConfig(on_failure=policy), 0,
            )  # fmt: skip


# -- policies ------------------------------------------------------------------------------------------------


def test_stop_names_the_client_the_stage_the_round_and_the_reason() -> None:
    with pytest.raises(ClientError, match=r"client 'b' failed in round 1 \(power\): gone") as caught:
        once(Answering(fails("b")))
    error = caught.value
    assert (error.stage, error.round, error.client, error.reason) == ("power", 1, "b", "gone")


def test_skip_averages_the_others_and_asks_once() -> None:
    exchange = Answering(fails("b"))
    state, record = once(exchange, after(6, versions={"a": 5, "b": 5, "d": 3}), on_failure="skip")
    assert b_of(state) == 2.5  # (1 + 4) / 2
    assert state.versions == {"a": 6, "c": 6, "d": 3}  # what b knows is unknown now; d was not asked
    assert state.visits == {"a": 1, "c": 1}
    assert record.clients == ("a", "c")
    assert set(record.losses) == set(record.steps) == set(record.norms) == {"a", "c"}
    assert record.failures == (Failure("b", "power", "gone"),)
    assert exchange.calls == [["a", "b", "c"]]
    assert [(e.client, e.direction) for e in record.ledger] == [
        ("a", "down"), ("a", "up"), ("b", "down"), ("c", "down"), ("c", "up"),
    ]  # fmt: skip


def test_retry_asks_the_failed_client_only_and_comes_to_the_same_bits() -> None:
    exchange, (smooth, _) = Answering(fails("a"), times=1), once(Answering())
    state, record = once(exchange, on_failure="retry")
    assert exchange.calls == [["a", "b", "c"], ["a"]]
    assert record.clients == ("a", "b", "c")
    assert record.failures == (Failure("a", "power", "gone"),)  # it did fail once
    assert [e.direction for e in record.ledger if e.client == "a"] == ["down", "down", "up"]
    assert torch.equal(state.everybody.adapter["m.B"], smooth.everybody.adapter["m.B"])


def test_retry_gives_up_and_skips() -> None:
    exchange = Answering(fails("b"))
    _, record = once(exchange, on_failure="retry")
    assert exchange.calls == [["a", "b", "c"], ["b"]]
    assert record.clients == ("a", "c")
    assert record.failures == (Failure("b", "power", "gone"),) * 2


@pytest.mark.parametrize("policy", ["skip", "retry"])
def test_a_round_without_any_update_is_an_error_under_every_policy(policy: str) -> None:
    with pytest.raises(ClientError, match="no client answered; gone"):
        once(Answering(fails("a") | fails("b") | fails("c")), on_failure=policy)


# -- a client that has lost its state ----------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "tries"), [("stop", 1), ("skip", 1), ("retry", 2)])
def test_a_client_that_lost_its_state_is_asked_once_more_with_the_whole_adapter(policy: str, tries: int) -> None:
    """Under every policy, and for nothing; after that the policy is in charge."""
    lossy = replace(AGREED, codec=CodecConfig(values="ternary", density=1))
    log = tuple(lossy.down.encode({"m.A": torch.tensor([[v, v]])}, START, 1) for v in (1.0, 2.0))
    start, config = after(2, log[1:], versions={"b": 1}), FederationConfig(on_failure=policy)
    exchange = Answering(fails("b", "version"), times=1)
    exchange.answer = lambda kind, client, round: encoded(  # type: ignore[method-assign]
        Update(round, client, {}, 2, 3, 1.0), START, lossy.up, START
    )
    state, record = run_round(start, CLIENTS, lossy, exchange, config, 0)
    assert record.clients == ("a", "b", "c")
    assert [(f.client, f.code) for f in record.failures] == [("b", "version")]
    assert state.versions["b"] == 2
    first, again = (decode_broadcast(b, lossy.down, lossy.schema) for client, b in exchange.sent if client == "b")
    assert (first.state, first.differences) == (None, log[1:])
    assert again.state is not None  # and no difference, which is of no use to it

    for_good = Answering(fails("b", "version"))
    for_good.answer = exchange.answer  # type: ignore[method-assign]
    if policy == "stop":
        with pytest.raises(ClientError, match="'b' failed in round 3"):
            run_round(start, CLIENTS, lossy, for_good, config, 0)
    else:
        _, record = run_round(start, CLIENTS, lossy, for_good, config, 0)
        assert record.clients == ("a", "c")
        assert len(record.failures) == 1 + tries
    assert [calls for calls in for_good.calls if calls == ["b"]] == [["b"]] * tries


# -- replies that do not fit ---------------------------------------------------------------------------------------

OTHER = {"m.A": torch.zeros(2, 2), "m.B": torch.zeros(1, 2)}
BF16 = up_codec(CodecConfig(values="bf16"), 0)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda round: b"", "shorter than a header"),
        (lambda round: b"\x00" * 80, "not a capfl message"),
        (lambda round: update("c", round), "says that it comes from 'c'"),
        (lambda round: update("b", round + 1), "is for round 2, this is round 1"),
        (lambda round: update("b", round, n_train=0), "no training items"),
        (lambda round: update("b", round)[:-1], "checksum"),
        (lambda round: encoded(Update(round, "b", {}, 1, 1, 1.0), OTHER, AGREED.up, OTHER), "another adapter"),
        (lambda round: encoded(Update(round, "b", {}, 1, 1, 1.0), START, BF16, START), "values of kind 2, expected 1"),
        (lambda round: Answering().answer("validate", "b", round), "message of kind 3 where kind 2 was expected"),
    ],
)
def test_a_reply_that_does_not_fit_is_a_failure_of_that_client(reply: Reply, reason: str) -> None:
    """And has crossed the network, so it is charged."""
    state, record = once(Answering({"b": reply}), on_failure="retry")
    assert record.clients == ("a", "c")
    assert [(f.client, f.code) for f in record.failures] == [("b", "wire")] * 2
    assert reason in record.failures[0].reason
    n = len(reply(1))  # type: ignore[arg-type]
    assert [(e.bytes, e.parts) for e in record.ledger if e.client == "b" and e.direction == "up"] == [
        (n, {"unreadable": n})
    ] * 2
    silent, _ = once(Answering(fails("b")), on_failure="skip")
    assert torch.equal(state.everybody.adapter["m.B"], silent.everybody.adapter["m.B"])
    with pytest.raises(ClientError, match="client 'b' failed"):
        once(Answering({"b": reply}))


# -- validation ------------------------------------------------------------------------------------------------


def test_a_validation_adds_to_the_record_and_tells_clients_the_version() -> None:
    config = FederationConfig(on_failure="skip")
    state, record = once(Answering())
    exchange = Answering(fails("b"))
    knowing, longer = validate_round(state, record, CLIENTS, AGREED, exchange, config)
    assert knowing.versions == {"a": 1, "c": 1}  # nothing is known of b
    assert replace(knowing, versions=state.versions) == state
    assert longer.validation == {"accuracy": 2 / 8}
    assert longer.validation_loss == 2.0
    assert longer.failures == (Failure("b", "power", "gone"),)
    assert longer.ledger[: len(record.ledger)] == record.ledger
    added = longer.ledger[len(record.ledger) :]
    assert [(e.client, e.direction, e.round) for e in added] == [
        ("a", "down", 1), ("a", "up", 1), ("b", "down", 1), ("c", "down", 1), ("c", "up", 1),
    ]  # fmt: skip
    assert added[1].parts == {"header": 43 + 5, "scores": 62}
    with pytest.raises(ClientError, match="client 'b' failed in round 2"):
        validate_round(state, record, CLIENTS, AGREED, exchange, FederationConfig())

"""One round against exchanges that answer without any model: who is asked, what counts, what a failure does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from capfl.methods.fedit import fedit
from hypothesis import given
from hypothesis import strategies as st

from capfl.config.schema import CodecConfig, FederationConfig
from capfl.errors import ClientError
from capfl.roles import Agreement
from capfl.round import run_round, sample
from capfl.types import Adapter, ClientId, ClientState, Entry, Failure, Kind, Request, RoundRecord, ServerState, Update
from capfl.wire import Codec, adding, decode_broadcast, encode_update, receive, schema_hash, up_codec

START = {"m.A": torch.tensor([[1.0, 2.0]]), "m.B": torch.tensor([[0.0]])}
AGREED = Agreement(fedit(), CodecConfig(values="fp32"), START)
BF16 = up_codec(CodecConfig(values="bf16"), 0)
CLIENTS = ["a", "b", "c"]
Reply = Callable[[int], bytes | Failure]


def step_of(client: ClientId) -> float:
    return {"a": 1.0, "b": 2.0, "c": 4.0}[client]


def after(rounds: int) -> ServerState:
    """A server whose clients know what they began with."""
    return ServerState(rounds, START, known=START)


def update(client: ClientId, round: int, **changes: object) -> bytes:
    change = {name: torch.full_like(t, step_of(client)) for name, t in START.items()}
    plain = Update(round, client, {}, n_train=2, steps=3, loss=step_of(client) / 2)
    return encoded(replace(plain, **changes), change, AGREED.up, START)  # type: ignore[arg-type]


def encoded(message: Update, change: Adapter, codec: Codec, template: Adapter) -> bytes:
    return encode_update(message, codec.encode(change, template, message.round), codec, schema_hash(template, ""))


class Answering:
    """Answers well, except where ``wrong`` has a reply for a client; keeps what it was sent."""

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
            yield client, self.wrong[client](round) if fails else update(client, round)


def once(exchange: Answering, start: ServerState | None = None, **config: object) -> tuple[ServerState, RoundRecord]:
    return run_round(start or after(0), CLIENTS, AGREED, exchange, FederationConfig(**config), 0)  # type: ignore[arg-type]


def fails(client: ClientId) -> dict[ClientId, Reply]:
    return {client: lambda round: Failure(client, "power", "gone")}


# -- sampling --------------------------------------------------------------------------------------


@given(
    st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=12, unique=True),
    st.floats(0.01, 1.0),
    st.integers(0, 9),
    st.integers(1, 9),
)
def test_a_sample_is_sorted_without_repetition_and_of_the_right_size(clients, fraction, seed, round):
    drawn = sample(clients, fraction, seed, round)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(clients)
    assert len(drawn) == max(1, int(fraction * len(clients) + 0.5))


def test_the_numbers_of_clients_by_hand():
    ten = [f"{k:02d}" for k in range(10)]
    sizes = {fraction: len(sample(ten, fraction, 0, 1)) for fraction in (0.01, 0.1, 0.14, 0.15, 0.25, 0.5, 1.0)}
    assert sizes == {0.01: 1, 0.1: 1, 0.14: 1, 0.15: 2, 0.25: 3, 0.5: 5, 1.0: 10}
    assert sample(ten, 1.0, 0, 1) == ten


def test_a_sample_depends_on_seed_and_round_but_not_on_the_order_of_the_clients():
    ten = [f"{k:02d}" for k in range(10)]
    assert len({tuple(sample(ten, 0.3, 0, round)) for round in range(1, 9)}) > 1
    assert len({tuple(sample(ten, 0.3, seed, 1)) for seed in range(8)}) > 1
    assert sample(ten[::-1], 0.3, 0, 1) == sample(ten, 0.3, 0, 1)


def test_over_many_rounds_every_client_is_drawn_about_equally_often():
    ten = [f"{k:02d}" for k in range(10)]
    drawn = [client for round in range(1, 1001) for client in sample(ten, 0.3, 0, round)]
    counts = [drawn.count(client) for client in ten]
    assert sum(counts) == 3000
    assert 250 < min(counts) <= max(counts) < 350  # 300 with a standard deviation of 14.5


def test_only_the_sampled_clients_are_asked_and_named():
    exchange = Answering()
    _, record = once(exchange, fraction=0.5)
    assert exchange.calls[0] == sample(CLIENTS, 0.5, 0, 1) == list(record.clients)
    assert len(record.clients) == 2


# -- a round in which all goes well --------------------------------------------------------------------


def test_a_round_by_hand():
    state, record = once(Answering(), after(4))
    assert state.round == record.round == 5
    torch.testing.assert_close(state.adapter["m.A"], torch.tensor([[1 + 7 / 3, 2 + 7 / 3]]))
    torch.testing.assert_close(state.adapter["m.B"], torch.tensor([[7 / 3]]))
    assert record.clients == ("a", "b", "c")
    assert record.losses == {"a": 0.5, "b": 1.0, "c": 2.0}
    assert record.loss == pytest.approx(3.5 / 3)
    assert record.steps == {"a": 3, "b": 3, "c": 3}
    assert (record.failures, record.validation_accuracy, record.validation_loss) == ((), None, None)
    assert record.seconds >= 0


def test_the_state_that_comes_in_is_not_changed():
    start = ServerState(0, {name: t.clone() for name, t in START.items()}, known=dict(START), versions={"a": 0})
    once(Answering(), start)
    assert (start.round, start.log, start.versions) == (0, (), {"a": 0})
    assert all(torch.equal(start.adapter[name], t) for name, t in START.items())
    assert all(torch.equal(start.known[name], t) for name, t in START.items())


def test_every_client_is_told_the_round_and_the_newest_version_of_the_global_adapter():
    exchange = Answering()
    newest = {"m.A": torch.tensor([[7.0, 2.0]]), "m.B": torch.tensor([[9.0]])}
    once(exchange, ServerState(6, START, known=newest, versions={"a": 5, "b": 2}))
    for client, blob in exchange.sent:
        told = decode_broadcast(blob, AGREED.up, AGREED.schema)
        assert (told.round, told.client) == (7, client)
        memory = receive(told, ClientState(client), adding(AGREED.down, START), START, AGREED.version_0)
        assert all(torch.equal(memory.known[name], t) for name, t in newest.items())


def test_the_server_remembers_what_the_clients_that_answered_know():
    start = replace(after(6), versions={"a": 5, "b": 5, "d": 3})
    state, _ = once(Answering(fails("b")), start, on_failure="skip")
    # a and c were told version 6; what b knows is unknown, so it will be told from version 0 on; d was not asked
    assert state.versions == {"a": 6, "c": 6, "d": 3}
    # an exact codec leads clients to the very adapter
    assert all(torch.equal(state.known[name], state.adapter[name]) for name in START)
    assert state.log == ()


def test_the_ledger_is_the_length_of_what_was_sent():
    exchange = Answering()
    _, record = once(exchange)
    expected = []
    # 38 bytes of header, 1 of client id, 4 of checksum; with values two sections, and 1 byte for the list of tensors
    down = {
        "header": 43,
        "positions": 0,
        "scales": 0,
        "values": 0,
        "notes": 0,
        "catch-up": 0,
    }  # before round 1 there is no news
    up = {"header": 43 + 2 * 5 + 1, "positions": 0, "scales": 0, "values": 12, "notes": 0}
    for client, blob in exchange.sent:
        expected += [Entry(1, client, "down", len(blob), down), Entry(1, client, "up", len(update(client, 1)), up)]
    assert list(record.ledger) == expected
    assert {(entry.direction, entry.bytes) for entry in record.ledger} == {("down", 43), ("up", 66)}
    assert (record.bytes_up, record.bytes_down) == (3 * 66, 3 * 43)


# -- policies ----------------------------------------------------------------------------------------


def test_stop_names_the_client_the_stage_the_round_and_the_reason():
    with pytest.raises(ClientError, match=r"client 'b' failed in round 1 \(power\): gone") as caught:
        once(Answering(fails("b")))
    assert (caught.value.stage, caught.value.round, caught.value.client, caught.value.reason) == (
        "power", 1, "b", "gone",
    )  # fmt: skip


def test_skip_averages_the_others_and_asks_once():
    exchange = Answering(fails("b"))
    state, record = once(exchange, on_failure="skip")
    assert torch.equal(state.adapter["m.B"], torch.tensor([[2.5]]))  # (1 + 4) / 2
    assert record.clients == ("a", "c")
    assert set(record.losses) == set(record.steps) == {"a", "c"}
    assert record.failures == (Failure("b", "power", "gone"),)
    assert exchange.calls == [["a", "b", "c"]]
    assert [(e.client, e.direction) for e in record.ledger] == [
        ("a", "down"), ("a", "up"), ("b", "down"), ("c", "down"), ("c", "up"),
    ]  # fmt: skip


def test_a_client_that_is_asked_again_is_told_from_the_beginning():
    """It may have failed because it did not know what the server took it to know."""
    lossy = replace(AGREED, codec=CodecConfig(values="ternary", density=1))
    log = tuple(lossy.down.encode({"m.A": torch.tensor([[v, v]])}, START, 1) for v in (1.0, 2.0))
    start = ServerState(2, START, known=START, log=log, versions={"b": 1})
    exchange = Answering({"b": lambda round: b"", "a": lambda round: b"", "c": lambda round: b""})
    with pytest.raises(ClientError, match="no client answered"):
        run_round(start, CLIENTS, lossy, exchange, FederationConfig(on_failure="retry"), 0)
    first, again = (decode_broadcast(b, lossy.down, lossy.schema) for client, b in exchange.sent if client == "b")
    assert (first.state, first.differences) == (None, log[1:])
    assert again.state is not None  # nothing has changed since version 0, which is shorter to say than two differences


def test_retry_asks_the_failed_client_only():
    exchange = Answering(fails("b"), times=1)
    state, record = once(exchange, on_failure="retry")
    assert exchange.calls == [["a", "b", "c"], ["b"]]
    first, again = (blob for client, blob in exchange.sent if client == "b")
    assert first == again  # in round 1 there is nothing that it could not know
    assert record.clients == ("a", "b", "c")
    torch.testing.assert_close(state.adapter["m.B"], torch.tensor([[7 / 3]]))
    assert record.failures == (Failure("b", "power", "gone"),)  # it did fail once
    assert [(e.client, e.direction) for e in record.ledger if e.client == "b"] == [
        ("b", "down"), ("b", "down"), ("b", "up"),
    ]  # fmt: skip


def test_a_retry_that_succeeds_gives_the_bits_of_a_round_without_failure():
    smooth, _ = once(Answering())
    bumpy, _ = once(Answering(fails("a"), times=1), on_failure="retry")
    assert all(torch.equal(smooth.adapter[name], bumpy.adapter[name]) for name in START)


@pytest.mark.parametrize("retries", [1, 3])
def test_retry_gives_up_and_skips(retries):
    exchange = Answering(fails("b"))
    _, record = once(exchange, on_failure="retry", retries=retries)
    assert exchange.calls == [["a", "b", "c"]] + [["b"]] * retries
    assert record.clients == ("a", "c")
    assert record.failures == (Failure("b", "power", "gone"),) * (1 + retries)
    assert sum(e.client == "b" and e.direction == "down" for e in record.ledger) == 1 + retries


def test_an_unusable_reply_has_crossed_the_wire_and_is_charged():
    _, record = once(Answering({"b": lambda round: b"x" * 17}), on_failure="retry")
    found = [(e.bytes, e.parts) for e in record.ledger if e.client == "b" and e.direction == "up"]
    assert found == [(17, {"unreadable": 17})] * 2


@pytest.mark.parametrize("policy", ["skip", "retry"])
def test_a_round_without_any_update_is_an_error_under_every_policy(policy):
    wrong = fails("a") | fails("b") | fails("c")
    with pytest.raises(ClientError, match="no client answered; gone") as caught:
        once(Answering(wrong), on_failure=policy)
    assert caught.value.stage == "power"


# -- replies that do not fit ---------------------------------------------------------------------------

OTHER = {"m.A": torch.zeros(2, 2), "m.B": torch.zeros(1, 2)}


@pytest.mark.parametrize(
    ("reply", "stage", "reason"),
    [
        (lambda round: b"", "decode", "shorter than a header"),
        (lambda round: b"\x00" * 80, "decode", "not a capfl message"),
        (lambda round: update("c", round), "decode", "says that it comes from 'c'"),
        (lambda round: update("b", round + 1), "decode", "is for round 2, this is round 1"),
        (lambda round: update("b", round, n_train=0), "decode", "no training items"),
        (lambda round: update("b", round)[:-1], "decode", "checksum"),
        (
            lambda round: encoded(Update(round, "b", {}, 1, 1, 1.0), OTHER, AGREED.up, OTHER),
            "decode",
            "another adapter",
        ),
        (
            lambda round: encoded(Update(round, "b", {}, 1, 1, 1.0), START, BF16, START),
            "decode",
            "values of kind 2, expected 1",
        ),
    ],
)
def test_a_reply_that_does_not_fit_is_a_failure_of_that_client(reply, stage, reason):
    _, record = once(Answering({"b": reply}), on_failure="skip")
    assert record.clients == ("a", "c")
    (failure,) = record.failures
    assert (failure.client, failure.stage) == ("b", stage)
    assert reason in failure.reason
    with pytest.raises(ClientError) as caught:
        once(Answering({"b": reply}))
    assert (caught.value.client, caught.value.stage) == ("b", stage)


# -- engines that break their contract, which is nobody's failure but their author's ---------------------


def test_an_engine_must_hand_on_one_reply_a_client_in_order():
    def silent(kind, round, clients, request):
        yield "a", update("a", round)

    def chatty(kind, round, clients, request):
        yield from ((client, update(client, round)) for client in [*clients, "a"])

    def confused(kind, round, clients, request):
        yield from ((client, update(client, round)) for client in reversed(clients))

    for engine, error in ((silent, ValueError), (chatty, ValueError), (confused, RuntimeError)):
        for policy in ("stop", "skip", "retry"):
            with pytest.raises(error):
                run_round(after(0), CLIENTS, AGREED, engine, FederationConfig(on_failure=policy), 0)


def test_the_order_of_the_clients_does_not_matter():
    config = FederationConfig()
    states = [
        run_round(after(0), order, AGREED, Answering(), config, 0)[0] for order in (["a", "b", "c"], ["c", "a", "b"])
    ]
    assert all(torch.equal(states[0].adapter[name], states[1].adapter[name]) for name in START)


def test_a_request_is_encoded_when_it_is_sent_and_a_reply_used_when_it_comes():
    """So that one message at a time is in memory, however many clients there are."""
    events = []

    def engine(kind, round, clients, request):
        for client in clients:
            events.append(f"ask {client}")
            request(client)
            yield client, update(client, round)
            events.append(f"used {client}")

    run_round(after(0), CLIENTS, AGREED, engine, FederationConfig(), 0)
    assert events == ["ask a", "used a", "ask b", "used b", "ask c", "used c"]

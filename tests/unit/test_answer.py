"""What a client answers when it is asked how its models do, on a site whose scores say which adapter was scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from capfl import adapter as algebra
from capfl.config import load_config
from capfl.config.schema import CodecConfig, FederationConfig
from capfl.errors import ConfigError, WireError
from capfl.methods.centralised import centralised
from capfl.methods.fedit import fedit
from capfl.methods.fedsa_lora import fedsa_lora
from capfl.methods.local import local
from capfl.roles import Agreement, agreements, refuse_pooled, server
from capfl.roles.answer import answer, personal
from capfl.roles.client import Site, aging
from capfl.round import run_round, validate_round
from capfl.types import Adapter, ClientState, Failure, HeldOut, Score, ServerState, SplitName, Trained
from capfl.wire import decode_broadcast

START = {"m.A": torch.tensor([[1.0], [2.0]]), "m.B": torch.zeros(1, 2)}
FP32 = CodecConfig(values="fp32")
AGREED = Agreement(fedit(), FP32, START)
TOLD = {"m.A": torch.tensor([[3.0], [4.0]]), "m.B": torch.tensor([[5.0, 0.0]])}
STATE = replace(server.start(AGREED), round=4, adapter=TOLD, known=TOLD)
ITEMS = 1000


def total(adapter: Adapter) -> int:
    return int(sum(float(t.sum()) for t in adapter.values()))


class AtSite:
    """Training adds one to everything; a score is the sum of the adapter's numbers, of the split's number of items."""

    def __init__(self) -> None:
        self.kept: list[Adapter] = []
        self.rounds: list[tuple[int, int]] = []

    def train(self, start: Adapter, round: int, first: int, penalty: object) -> Trained:
        self.rounds.append((round, first))
        return Trained({name: t + 1 for name, t in start.items()}, (1.0,))

    def score(self, split: SplitName, adapter: Adapter) -> Score:
        return Score(total(adapter), ITEMS if split == "test" else ITEMS + 1, 0.5)

    @property
    def site(self) -> Site:
        return Site("a", 7, self.train, score=self.score, test=HeldOut(ITEMS, 0.25, 0.5), keep=self.kept.append)


def asked(agreement: Agreement, state: ServerState = STATE) -> bytes:
    return server.request(state, "a", agreement).blob


# -- the end of a run -------------------------------------------------------------------------------------


def test_an_evaluation_scores_every_model_and_changes_no_memory():
    at, memory = AtSite(), ClientState("a", steps=9, trained=4)
    reply, after = answer("evaluate", asked(AGREED), memory, at.site, AGREED)
    said, parts = server.read_evaluation(reply, "a", 5, AGREED)
    assert after is memory
    assert (said.n_train, said.test) == (7, HeldOut(ITEMS, 0.25, 0.5))
    assert said.scores == {name: Score(n, ITEMS, 0.5) for name, n in (("base", 3), ("global", 12), ("personal", 16))}
    assert at.rounds == [(5, 9)]  # one more round of local steps, from where the last one ended
    (kept,) = at.kept
    assert total(kept) == 16
    assert said.ranks == {"m": 2}
    assert sum(parts.values()) == len(reply)


def test_a_personal_model_is_part_of_the_way_and_without_ranks_that_add_nothing():
    half = replace(AGREED, mix=0.0)
    at = AtSite()
    reply, _ = answer("evaluate", asked(half), ClientState("a"), at.site, half)
    said, _ = server.read_evaluation(reply, "a", 5, half)
    assert said.scores["personal"] == said.scores["global"] == Score(12, ITEMS, 0.5)
    assert said.ranks == {"m": 1}  # B's second column is zero
    assert algebra.ranks(at.kept[0]) == {"m": 1}


def test_training_after_a_round_does_not_bring_dropped_ranks_back():
    """As a proximal term would, which pulls them towards what was received."""

    def settle(start: Adapter, memory: ClientState) -> Adapter:
        return algebra.without(start, torch.tensor([False, True]))

    dropping = replace(AGREED, method=replace(AGREED.method, settle=settle))
    at = AtSite()
    reply, _ = answer("evaluate", asked(dropping), ClientState("a"), at.site, dropping)
    assert server.read_evaluation(reply, "a", 5, dropping)[0].ranks == {"m": 1}


def test_no_personal_model_where_none_is_asked_for():
    shared = replace(AGREED, models=("base", "global"))
    at = AtSite()
    reply, _ = answer("evaluate", asked(shared), ClientState("a"), at.site, shared)
    assert list(server.read_evaluation(reply, "a", 5, shared)[0].scores) == ["base", "global"]
    assert (at.rounds, at.kept) == ([], [])
    with pytest.raises(WireError, match="scored base, global, and was asked for base, global, personal: the sites'"):
        server.read_evaluation(reply, "a", 5, AGREED)


def test_models_that_there_are_not():
    assert Agreement(fedsa_lora(), FP32, START).scored == ("base", "personal")
    assert Agreement(centralised(), FP32, START).scored == ()
    pooled = Agreement(centralised(), FP32, START)
    reply, _ = answer("evaluate", asked(pooled), ClientState("a"), AtSite().site, pooled)
    assert server.read_evaluation(reply, "a", 5, pooled)[0].scores == {}


def test_a_reply_of_another_client_or_round():
    reply, _ = answer("evaluate", asked(AGREED), ClientState("a"), AtSite().site, AGREED)
    with pytest.raises(WireError, match="reply of client 'b' says that it comes from 'a'"):
        server.read_evaluation(reply, "b", 5, AGREED)
    with pytest.raises(WireError, match="is for round 5, this is round 6"):
        server.read_evaluation(reply, "a", 6, AGREED)


# -- the references ----------------------------------------------------------------------------------------


def made(**changes: object) -> dict[str, Agreement]:
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    return agreements(load_config(None, settings), START, "base")


def test_local_only_takes_a_last_round_of_steps_where_the_method_does():
    alone = ClientState("a", steps=9, adapter=TOLD)
    for settings, steps in (
        ({}, True),
        ({"evaluation__mix": 0.0}, True),  # the whole way, whatever share a personal model goes
        ({"method__name": "ditto"}, False),
        ({"evaluation__personal": False}, False),
        ({"method__name": "centralised"}, False),
    ):
        agreed, at = made(**settings)["local"], AtSite()
        own = personal(alone, 5, at.site, agreed)
        assert own is not None
        assert total(own) == (16 if steps else 12), settings
        assert agreed.scored == ("personal",)
        assert bool(at.rounds) is steps


def test_who_is_asked_for_what():
    assert list(made(evaluation__references=["local", "centralised"])) == ["fedit", "local", "centralised"]
    assert list(made(method__name="local", evaluation__references=["local"])) == ["local"]
    assert made(evaluation__personal=False)["fedit"].scored == ("base", "global")
    assert made(evaluation__mix=0.25)["fedit"].mix == 0.25
    refuse_pooled(made())
    with pytest.raises(ConfigError, match="centralised is trained on everybody's data in one place"):
        refuse_pooled(made(evaluation__references=["centralised"]))


# -- validation --------------------------------------------------------------------------------------------


def test_a_validation_scores_what_was_told_and_remembers_it():
    at, memory = AtSite(), ClientState("a", steps=9, trained=3, residual={"m.A": torch.ones(2, 1)})
    reply, after = answer("validate", asked(AGREED), memory, at.site, AGREED)
    said, _ = server.read_validation(reply, "a", 5, AGREED)
    assert said.score == Score(12, ITEMS + 1, 0.5)
    assert after.version == 4
    assert total(after.known) == 12
    assert (after.steps, after.trained, after.residual) == (9, 3, memory.residual)
    assert at.rounds == []
    again, same = answer("validate", asked(AGREED, replace(STATE, versions={"a": 4})), after, at.site, AGREED)
    assert (again, same.version) == (reply, 4)
    assert len(asked(AGREED, replace(STATE, versions={"a": 4}))) == 43  # nothing but a header


def test_the_server_knows_who_has_been_told_and_what_it_cost():
    sites = {name: AtSite() for name in "abc"}
    lost: set[tuple[str, str]] = set()

    def exchange(kind, round, clients, request):  # type: ignore[no-untyped-def]
        for name in clients:
            site = replace(sites[name].site, client=name)
            blob = request(name)
            if (kind, name) in lost:
                yield name, Failure(name, "power", "gone")
            else:
                yield name, answer(kind, blob, ClientState(name), site, AGREED)[0]

    config = FederationConfig(on_failure="skip")
    state, record = run_round(server.start(AGREED), list("abc"), AGREED, exchange, config, 0)
    assert (record.validation_loss, state.versions) == (None, {"a": 0, "b": 0, "c": 0})
    lost.add(("validate", "b"))
    knowing, longer = validate_round(state, record, list("abc"), AGREED, exchange, config)
    assert knowing.versions == {"a": 1, "c": 1}  # nothing is known of b
    assert replace(knowing, versions=state.versions) == state
    score = total(state.whole)
    assert longer.validation_accuracy == pytest.approx(2 * score / (2 * (ITEMS + 1)))
    assert longer.validation_loss == pytest.approx(1.0 / (2 * (ITEMS + 1)))
    assert longer.ledger[: len(record.ledger)] == record.ledger
    added = longer.ledger[len(record.ledger) :]
    assert [(e.client, e.direction, e.round) for e in added] == [
        ("a", "down", 1), ("a", "up", 1), ("b", "down", 1), ("c", "down", 1), ("c", "up", 1)
    ]  # fmt: skip
    assert added[1].parts == {"header": 43 + 5, "scores": 17}
    assert longer.failures == (Failure("b", "power", "gone"),)
    told = {
        name: decode_broadcast(server.request(knowing, name, AGREED).blob, AGREED.down, AGREED.schema) for name in "ab"
    }
    assert (told["a"].state, told["a"].differences) == (None, ())
    assert told["b"].state is not None


@pytest.mark.parametrize("kind", ["train", "validate", "evaluate"])
def test_a_message_for_somebody_else_changes_nothing(kind):
    request = server.request(STATE, "b", AGREED).blob
    at = AtSite()
    with pytest.raises(WireError, match="client 'a' received a message for 'b'"):
        answer(kind, request, ClientState("a"), at.site, AGREED)
    assert (at.rounds, at.kept) == ([], [])


def test_a_method_without_a_global_adapter_knows_no_more_than_it_is_told():
    agreed = Agreement(local(), FP32, START)
    assert agreed.whole({}) == START


def test_a_residual_ages_by_the_rounds_since_the_client_trained_whatever_it_has_been_told_since():
    codec = CodecConfig(values="bf16", mask="top", density=0.5, residual_decay=0.5, residual_rounds=3)
    agreed = Agreement(fedit(), codec, START)
    left = {"m.A": torch.tensor([[8.0], [0.0]])}
    for trained, version, expected in ((4, 3, 4.0), (2, 4, 1.0), (1, 4, None), (5, 4, 8.0)):
        memory = ClientState("a", version=version, residual=left, trained=trained)
        aged = aging(memory, 5, agreed).residual
        assert (float(aged["m.A"][0, 0]) if aged else None) == expected, trained

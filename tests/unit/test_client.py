"""A client that is asked to train, to validate or to evaluate, where scores say which adapter was scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from capfl import adapter as algebra
from capfl.config import load_config
from capfl.config.schema import CodecConfig, MethodConfig
from capfl.errors import ConfigError, DataError, WireError
from capfl.methods import Method, build
from capfl.methods.ranks import GivenRanks, Shares
from capfl.methods.take_home import AfterSteps, Own
from capfl.packing import pack
from capfl.roles import server
from capfl.roles.agreement import Agreement, agreements, refuse_pooled
from capfl.roles.client import ANSWERS, LocalTrainer, personal
from capfl.types import (
    EVERYBODY,
    Adapter,
    ClientState,
    Group,
    HeldOut,
    Kind,
    Penalty,
    Score,
    ServerState,
    SplitName,
    Trained,
)  # fmt: skip
from scored import right

START = {"m.A": torch.tensor([[1.0], [2.0]]), "m.B": torch.zeros(1, 2)}
SENT = {"m.A": torch.tensor([[3.0], [4.0]]), "m.B": torch.tensor([[5.0, 0.0]])}
FP32, BF16 = CodecConfig(values="fp32"), CodecConfig(values="bf16", mask="top", density=0.5)
STATE = ServerState(4, {EVERYBODY: Group(SENT, SENT)}, version=4)  # of a federation whose clients begin with START
ITEMS = 1000


def of(name: str, codec: CodecConfig = FP32, **parts: object) -> Agreement:
    return Agreement(replace(build(MethodConfig(name=name)), **parts), codec, START)  # type: ignore[arg-type]


def total(adapter: Adapter) -> int:
    return int(sum(float(t.sum()) for t in adapter.values()))


class Site:
    """Training adds one to everything; a score is the sum of the adapter's numbers, of the split's number of items."""

    def __init__(self) -> None:
        self.kept: list[Adapter] = []
        self.trained: list[tuple[int, int, bool]] = []  # round, first step, is there a penalty?

    def train(self, start: Adapter, round: int, first: int, penalty: Penalty | None) -> Trained:
        self.trained.append((round, first, penalty is not None))
        return Trained({name: t + 1 for name, t in start.items()}, (1.0, 0.5))

    def score(self, split: SplitName, adapters: Mapping[str, Adapter]) -> dict[str, Score]:
        items = ITEMS if split == "test" else ITEMS + 1
        return {model: right(total(adapter), items, 0.5) for model, adapter in adapters.items()}

    @property
    def trainer(self) -> LocalTrainer:
        test = HeldOut(ITEMS, 0.25, 0.5)
        return LocalTrainer("a", 7, self.train, score=self.score, test=test, keep=self.kept.append)


def ask(
    kind: Kind, agreed: Agreement, memory: ClientState, site: Site, state: ServerState = STATE
) -> tuple[bytes, ClientState]:
    return ANSWERS[kind](server.request(state, "a", agreed).blob, memory, site.trainer, agreed)


# -- training --------------------------------------------------------------------------------------------------


def test_an_update_is_what_changed_and_the_client_remembers_where_it_stands() -> None:
    site, agreed = Site(), of("fedit")
    reply, after = ask("train", agreed, ClientState("a", steps=9, trained=2), site)
    said, parts = server.read_update(reply, "a", STATE, agreed)
    assert {name: t.unique().tolist() for name, t in said.adapter.items()} == {"m.A": [1.0], "m.B": [1.0]}
    assert (said.n_train, said.steps, said.loss) == (7, 2, 0.75)
    assert sum(parts.values()) == len(reply)
    assert site.trained == [(5, 9, False)]
    assert (after.steps, after.trained, after.version) == (11, 5, 4)
    assert (after.known, after.adapter, after.residual) == ({}, {}, {})  # the whole adapter will come again


def test_with_feedback_a_client_keeps_what_it_could_not_send_and_what_it_knows() -> None:
    site, agreed = Site(), of("fedit", BF16)
    first, memory = ask("train", agreed, ClientState("a"), site)
    sent = server.read_update(first, "a", STATE, agreed)[0].adapter
    assert sum(int(t.count_nonzero()) for t in sent.values()) == 2  # half of four
    assert total(sent) + total(memory.residual) == 4
    assert torch.equal(memory.known["m.B"], SENT["m.B"])
    second, after = ask("train", agreed, memory, site, replace(STATE, versions={"a": 4}))
    assert total(server.read_update(second, "a", STATE, agreed)[0].adapter) + total(after.residual) == 2 + 4
    assert total(memory.residual) == 2, "what the client remembered was changed in place"


def test_factors_of_its_own_stay_with_the_client() -> None:
    site, agreed = Site(), of("fedsa-lora")
    only_a = ServerState(4, {EVERYBODY: Group(SENT, {"m.A": SENT["m.A"]})}, version=4)
    reply, memory = ask("train", agreed, ClientState("a", adapter={"m.B": torch.tensor([[7.0, 7.0]])}), site, only_a)
    assert list(server.read_update(reply, "a", STATE, agreed)[0].adapter) == ["m.A"]
    assert {name: t.tolist() for name, t in memory.adapter.items()} == {"m.B": [[8.0, 8.0]]}  # its own, and a step


def test_ditto_trains_its_own_adapter_near_the_servers_first() -> None:
    site, agreed = Site(), of("ditto")
    own = {name: t + 10 for name, t in START.items()}
    reply, memory = ask("train", agreed, ClientState("a", steps=3, adapter=own), site)
    assert site.trained == [(5, 3, True), (5, 3, False)]
    assert total(memory.adapter) == total(own) + 4
    assert memory.steps == 5
    assert total(server.read_update(reply, "a", STATE, agreed)[0].adapter) == 4


def test_a_client_of_fewer_ranks_trains_and_sends_those() -> None:
    agreed = of("flexlora", ranks=Shares((0.5,)))
    given = agreed.method.ranks.start(START, ["a"])
    site, state = Site(), replace(STATE, ranks=given)
    reply, memory = ask("train", agreed, ClientState("a"), site, state)
    assert isinstance(memory.ranks, GivenRanks)
    assert memory.ranks.marks.tolist() == [1.0, 0.0]
    change = server.read_update(reply, "a", STATE, agreed)[0].adapter
    assert change["m.A"].tolist() == [[1.0], [0.0]]
    assert change["m.B"].tolist() == [[1.0, 0.0]]
    ask("evaluate", agreed, memory, site, state)
    assert {name: t.tolist() for name, t in site.kept[0].items()} == {"m.A": [[4.0]], "m.B": [[6.0]]}


# -- the end of a run --------------------------------------------------------------------------------------------


def test_an_evaluation_scores_every_model_and_changes_no_memory() -> None:
    site, memory, agreed = Site(), ClientState("a", steps=9, trained=4), of("fedit")
    reply, after = ask("evaluate", agreed, memory, site)
    said, parts = server.read_evaluation(reply, "a", STATE, agreed)
    assert after is memory
    assert (said.n_train, said.test) == (7, HeldOut(ITEMS, 0.25, 0.5))
    assert said.scores == {name: right(n, ITEMS, 0.5) for name, n in (("base", 3), ("global", 12), ("personal", 16))}
    assert site.trained == [(5, 9, False)]  # one more round of local steps, from where the last one ended
    assert [total(kept) for kept in site.kept] == [16]
    assert said.ranks == {"m": 2}
    assert sum(parts.values()) == len(reply)


def test_what_a_client_takes_home() -> None:
    """All of the steps, a part of them without ranks that add nothing, or the adapter that it keeps."""
    own = {name: t + 10 for name, t in START.items()}
    for name, takes, score, ranks, trained in (
        ("fedit", AfterSteps(), 16, 2, 1),
        ("fedit", AfterSteps(0.5), 14, 2, 1),
        ("fedit", AfterSteps(0.0), 12, 1, 1),
        ("local", Own(), 43, 2, 0),
    ):
        site, agreed = Site(), of(name, takes_home=takes)
        state = STATE if name == "fedit" else agreed.method.start(START)
        reply, _ = ask("evaluate", agreed, ClientState("a", adapter=own), site, state)
        said = server.read_evaluation(reply, "a", state, agreed)[0]
        assert (said.scores["personal"].metrics["accuracy"].sum, said.ranks, len(site.trained)) == (
            score,
            {"m": ranks},
            trained,
        )
        assert algebra.ranks(site.kept[0]) == {"m": ranks}


def test_no_personal_model_where_none_is_asked_for() -> None:
    site, shared = Site(), replace(of("fedit"), models=("base", "global"))
    reply, _ = ask("evaluate", shared, ClientState("a"), site)
    assert list(server.read_evaluation(reply, "a", STATE, shared)[0].scores) == ["base", "global"]
    assert (site.trained, site.kept) == ([], [])
    with pytest.raises(WireError, match="scored base, global, and was asked for base, global, personal: the sites'"):
        server.read_evaluation(reply, "a", STATE, of("fedit"))


def test_models_that_there_are_not() -> None:
    assert of("fedsa-lora").scored == of("local").scored == ("base", "personal")
    pooled = of("centralised")
    reply, _ = ask("evaluate", pooled, ClientState("a"), Site())
    assert server.read_evaluation(reply, "a", STATE, pooled)[0].scores == {}
    assert of("local").whole({}) == START


def test_a_client_keeps_the_best_of_its_own_models() -> None:
    """Of round 5 and of what it would take home in the end, by the loss on its validation items."""
    for losses, kept in (((3.0, 2.0, 1.0), 16), ((1.0, 2.0, 2.0), 46), ((2.0, 2.0, float("nan")), 46)):
        site, agreed, waiting = Site(), replace(of("fedit"), keep_best=True), list(losses)
        higher = replace(STATE, groups={EVERYBODY: Group(algebra.scaled(SENT, 3.5), algebra.scaled(SENT, 3.5))})

        def score(split: SplitName, adapters: Mapping[str, Adapter]) -> dict[str, Score]:
            loss = waiting.pop(0) if split == "validation" else 0.5  # noqa: B023
            return {model: right(0, ITEMS, loss * ITEMS) for model in adapters}

        trainer = replace(site.trainer, score=score)
        first = server.request(higher, "a", agreed).blob
        _, memory = ANSWERS["train"](first, ClientState("a"), trainer, agreed)
        assert (total(memory.best), memory.best_loss) == (46, losses[0])  # 3.5 times twelve, and a step
        _, memory = ANSWERS["train"](first, memory, trainer, agreed)
        assert memory.best_loss == min(losses[:2])
        ANSWERS["evaluate"](server.request(STATE, "a", agreed).blob, memory, trainer, agreed)
        assert [total(own) for own in site.kept] == [kept]
    assert ask("train", of("fedit"), ClientState("a"), Site())[1].best == {}


# -- validation ----------------------------------------------------------------------------------------------------


def test_a_validation_scores_what_was_sent_and_remembers_it() -> None:
    site, agreed = Site(), of("fedit", BF16)
    memory = ClientState("a", steps=9, trained=3, residual={"m.A": torch.ones(2, 1)})
    reply, after = ask("validate", agreed, memory, site)
    assert server.read_validation(reply, "a", STATE, agreed)[0].score == right(12, ITEMS + 1, 0.5)
    assert (after.version, total(after.known), site.trained) == (4, 12, [])
    assert (after.steps, after.trained, after.residual) == (9, 3, memory.residual)
    knowing = replace(STATE, versions={"a": 4})
    again, same = ask("validate", agreed, after, site, knowing)
    assert (again, same.version) == (reply, 4)
    assert len(server.request(knowing, "a", agreed).blob) == 43  # nothing but a header
    trainer = replace(site.trainer, score=LocalTrainer("a", 7, site.train).score)
    with pytest.raises(DataError, match="no validation items"):
        ANSWERS["validate"](server.request(STATE, "a", agreed).blob, memory, trainer, agreed)


def test_records_mean_nothing_to_a_client_that_has_not_trained() -> None:
    """It would take the prior of that round for its first posterior, and not the one of the round that it trains in."""
    agreed = of("ca-pfl")
    state = replace(STATE, grouping=agreed.method.grouping.start(), ranks=agreed.method.ranks.start(START, []))
    for trained, kept in ((0, False), (3, True)):
        _, after = ask("validate", agreed, ClientState("a", trained=trained), Site(), state)
        assert (after.ranks is not None) is kept


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["train", "validate", "evaluate"])
def test_a_message_for_somebody_else_changes_nothing(kind: Kind) -> None:
    site, memory = Site(), ClientState("a", residual={"m.A": torch.ones(2, 1)})
    before, request = pack(memory), server.request(STATE, "b", of("fedit")).blob
    for blob, said in ((request, "client 'a' received a message for 'b'"), (b"", "shorter than a header")):
        with pytest.raises(WireError, match=said):
            ANSWERS[kind](blob, memory, site.trainer, of("fedit"))
    assert (site.trained, site.kept, pack(memory)) == ([], [], before)


# -- what is agreed on -----------------------------------------------------------------------------------------------


def made(**changes: object) -> dict[str, Agreement]:
    settings = {"method.name": "fedit"} | {key.replace("__", "."): value for key, value in changes.items()}
    return agreements(load_config(None, settings), START, "base")


def test_who_is_asked_for_what() -> None:
    assert list(made(evaluation__references=["local", "centralised"])) == ["fedit", "local", "centralised"]
    assert list(made(method__name="local", evaluation__references=["local"])) == ["local"]
    assert made(evaluation__personal=False)["fedit"].scored == ("base", "global")
    assert made()["local"].scored == ("personal",)
    refuse_pooled(made())
    with pytest.raises(ConfigError, match="centralised trains on all data in one place"):
        refuse_pooled(made(evaluation__references=["centralised"]))


def test_local_only_takes_a_last_round_of_steps_where_the_method_does() -> None:
    for settings, steps in (
        ({}, True),
        ({"method__name": "ca-pfl"}, True),  # the whole way, whatever share a personal model goes
        ({"method__name": "ditto"}, False),
        ({"evaluation__personal": False}, False),
        ({"method__name": "centralised"}, False),
    ):
        agreed, site = made(evaluation__references=["local"], **settings)["local"], Site()
        own = personal(ClientState("a", steps=9, adapter=SENT), 5, site.trainer, agreed)
        assert own is not None
        assert total(own) == (16 if steps else 12), settings
        assert bool(site.trained) is steps


def test_a_random_part_of_a_rewritten_adapter_is_not_scaled_twice() -> None:
    method: Method = build(MethodConfig(name="flexlora"))
    with pytest.raises(ConfigError, match=r"with flexlora the server changes all elements.* set codec.compensation"):
        Agreement(method, CodecConfig(values="ternary", down_density=0.5), START)
    assert Agreement(method, CodecConfig(values="ternary"), START).down.density == 1

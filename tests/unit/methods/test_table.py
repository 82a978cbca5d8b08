"""Rows of parts: the table's, those of one's own, and those that make no sense."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from capfl.config.methods import METHOD_LIST
from capfl.config.schema import MethodConfig
from capfl.errors import ConfigError
from capfl.methods import METHODS, build, describe
from capfl.methods.combine import CorrectedB, ExactProduct, TruncatedProduct, WeightedMean
from capfl.methods.factors import ALTERNATING, BOTH, NOTHING, ONLY_A, ONLY_B
from capfl.methods.grouping import Everybody
from capfl.methods.order import Order
from capfl.methods.peers import Peers
from capfl.methods.posterior import Posterior
from capfl.methods.ranks import AllRanks, Shares
from capfl.methods.table import OF_ALL
from capfl.methods.take_home import AfterSteps, NearServer, Own
from capfl.roles.client import personal
from parts import Federation, row

PARTS = {
    "ca-pfl": (BOTH, WeightedMean(), Peers(), Posterior(), AfterSteps(0.5)),
    "fedit": (BOTH, WeightedMean(), Everybody(), AllRanks(), AfterSteps()),
    "fedex-lora": (BOTH, ExactProduct(), Everybody(), AllRanks(), AfterSteps()),
    "lora-fair": (BOTH, CorrectedB(), Everybody(), AllRanks(), AfterSteps()),
    "flexlora": (BOTH, TruncatedProduct(), Everybody(), AllRanks(), AfterSteps()),
    "ffa-lora": (ONLY_B, WeightedMean(), Everybody(), AllRanks(), AfterSteps()),
    "fedsa-lora": (ONLY_A, WeightedMean(), Everybody(), AllRanks(), AfterSteps()),
    "rolora": (ALTERNATING, WeightedMean(), Everybody(), AllRanks(), AfterSteps()),
    "ditto": (BOTH, WeightedMean(), Everybody(), AllRanks(), NearServer()),
    "local": (NOTHING, WeightedMean(), Everybody(), AllRanks(), AfterSteps()),
    "centralised": (BOTH, WeightedMean(), Everybody(), AllRanks(), AfterSteps()),
}


def made(name: str, seed: int = 0, **settings: object):  # type: ignore[no-untyped-def]
    return build(MethodConfig(name=name, **settings), seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_a_row_has_the_parts_that_it_is_made_of(name: str) -> None:
    method = made(name)
    assert (method.factors, method.combine, method.grouping, method.ranks, method.takes_home) == PARTS[name]
    assert (method.name, method.pooled, method.alpha_f) == (
        name,
        name == "centralised",
        0.1 if name == "ca-pfl" else 0.0,
    )
    assert method.has_server_model == (name not in ("local", "fedsa-lora"))
    assert dataclasses.is_dataclass(method)


def test_the_table_in_words_has_every_row_and_says_all_of_it() -> None:
    rows = describe()
    written = json.loads(METHOD_LIST.read_text(encoding="utf-8"))
    assert written == rows, f"write {METHOD_LIST} anew: json.dumps(capfl.methods.describe(), indent=1)"
    assert [words["method"] for words in rows] == list(METHODS)
    for words in rows:
        alone = words["method"] in ("local", "centralised")
        empty = [question for question, answer in words.items() if not answer]
        empty = [question for question in empty if question != "settings"]
        assert empty == (["combined", "learns with", "order"] if alone else [])
        assert words["settings"] == ", ".join(METHODS[words["method"]].settings)


@pytest.mark.parametrize(
    ("name", "settings", "part", "expected"),
    [
        ("ca-pfl", {"peers": 0.5, "rff_output_dim": 8}, "grouping", Peers(0.5, 8, seed=3)),
        ("ca-pfl", {"alpha_s": 0.0, "alpha_p": 0.2, "mlp_hidden_dim": 4, "rank_floor": 0.1}, "ranks",
         Posterior(0.0, 0.2, 4, 0.1, seed=3)),
        ("ca-pfl", {"alpha_f": 0.0}, "alpha_f", 0.0),
        ("fedit", {"alpha_f": 0.1}, "source", "arXiv:1812.06127"),  # FedProx
        ("fedit", {"alpha_f": 0.0}, "source", "arXiv:2305.05644"),
        ("flexlora", {"rank_shares": (1.0, 0.5)}, "ranks", Shares((1.0, 0.5))),
        ("ditto", {"alpha_f": 0.5}, "takes_home", NearServer(0.5)),
    ],
)  # fmt: skip
def test_settings_go_to_the_parts_that_they_are_of(
    name: str, settings: dict[str, object], part: str, expected: object
) -> None:
    assert getattr(made(name, 3, **settings), part) == expected
    assert set(settings) <= set(METHODS[name].settings)


def test_every_setting_of_a_row_is_a_key_and_every_key_is_of_some_row() -> None:
    used = {key for entry in METHODS.values() for key in entry.settings}
    assert used == set(MethodConfig.model_fields) - {"name", *OF_ALL}


def test_the_mean_change_may_be_multiplied_where_a_mean_is_added() -> None:
    assert made("ca-pfl", server_step=2.0).combine == WeightedMean(2.0)
    fold = made("fedit", server_step=2.0).combine.start({"q.A": torch.ones(1, 1)}, 1)
    fold.add({"q.A": torch.full((1, 1), 0.5)}, 1.0)
    assert fold.value()["q.A"].item() == 2.0
    for name, reason in (("flexlora", "does more than add a mean"), ("local", "do not learn from each other")):
        with pytest.raises(ConfigError, match=rf"^method\.server_step: .*{reason}; leave it out$"):
            made(name, server_step=2.0)


@pytest.mark.parametrize("name", METHODS)
def test_turns_are_for_all_methods_whose_clients_learn_from_each_other(name: str) -> None:
    usual = Order(6) if name == "ca-pfl" else Order()
    assert made(name).order == usual
    if name in ("local", "centralised"):
        with pytest.raises(ConfigError, match=rf"^method\.turns: clients of {name} do not learn .*; leave it out$"):
            made(name, turns=2)
        return
    method = made(name, turns=6)
    assert dataclasses.replace(method, order=usual) == made(name)
    assert method.order == Order(6)
    assert method.describe()["order"] == "in turn, in up to 6 turns a round"
    assert made(name, turns=1).describe()["order"] == "together"


# -- refused -------------------------------------------------------------------------------------------------------


def test_an_unknown_name_and_a_setting_that_is_not_used() -> None:
    with pytest.raises(
        ConfigError, match=r"no method 'fedsim'; did you mean fedit.* Else choose from ca-pfl, fedit, fedex-lora"
    ):
        made("fedsim")
    for name in ("local", "centralised", "ffa-lora"):
        with pytest.raises(
            ConfigError, match=f"method.alpha_f: {name} does not use it; leave it out, or use ca-pfl, fedit"
        ):
            made(name, alpha_f=0.1)


def test_a_row_of_ones_own_has_its_settings_already() -> None:
    own = {"own": row(alpha_f=0.3), "fedit": row()}
    assert build(MethodConfig(name="own"), 0, own) is own["own"]
    assert build(MethodConfig(name="fedit"), 0, own) is own["fedit"]  # it goes before the table's
    assert build(MethodConfig(name="own", turns=3), 0, own) == dataclasses.replace(own["own"], order=Order(3))
    with pytest.raises(ConfigError, match=r"method\.alpha_f: own does not use it"):
        build(MethodConfig(name="own", alpha_f=0.1), 0, own)
    with pytest.raises(ConfigError, match=r"there is no method 'other'; choose from .*, own"):
        build(MethodConfig(name="other"), 0, own)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        *(({"combine": combine, "factors": factors}, "needs both factors of every client; use factors = BOTH")
          for combine in (CorrectedB(), TruncatedProduct(), ExactProduct())
          for factors in (ONLY_A, ONLY_B, ALTERNATING)),
        ({"combine": ExactProduct(), "grouping": Peers()}, "all of them learn together, with all ranks; use"),
        ({"combine": ExactProduct(), "ranks": Shares((1.0,))}, "all of them learn together, with all ranks; use"),
        ({"grouping": Peers(), "factors": ONLY_A}, "peers share a whole adapter; use factors = BOTH or ALTERNATING"),
        ({"grouping": Peers(), "factors": NOTHING}, "peers share a whole adapter; use factors = BOTH or ALTERNATING"),
        ({"ranks": Posterior(), "factors": ONLY_B}, "only of a whole adapter; use factors = BOTH or ALTERNATING"),
        ({"alpha_f": 0.1, "factors": NOTHING}, "nothing travels; use alpha_f = 0"),
        ({"takes_home": Own()}, "keep no adapter that they could take home; use takes_home"),
        ({"takes_home": Own(), "factors": ONLY_A}, "keep no adapter that they could take home; use takes_home"),
        ({"takes_home": NearServer(), "factors": ONLY_A}, "held near the server's has all of its factors and ranks"),
        ({"takes_home": NearServer(), "ranks": Posterior()}, "held near the server's has all of its factors and ranks"),
        ({"takes_home": NearServer(), "grouping": Peers()}, "is no client's start; use factors = BOTH, grouping"),
    ],
)  # fmt: skip
def test_parts_that_do_not_go_together(parts: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^own: .*{reason}"):
        row(**parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"grouping": Peers(), "factors": ALTERNATING, "ranks": Posterior(), "alpha_f": 0.1},
        {"grouping": Peers(), "takes_home": Own()},
        {"factors": NOTHING, "takes_home": Own()},
        {"factors": ONLY_B, "takes_home": NearServer(), "alpha_f": 0.1},
        {"factors": ONLY_A, "alpha_f": 0.1},
        {"combine": TruncatedProduct(), "grouping": Peers(), "ranks": Posterior()},
    ],
)
def test_parts_that_do(parts: dict[str, object]) -> None:
    played = Federation(row(**parts), "default")
    played.rounds(3)
    assert personal(played.memory("a"), 4, played.trainer("a"), played.agreement) is not None

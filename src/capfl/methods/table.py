"""The methods that there are, a row of parts each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from capfl.config.methods import OF_ALL, check_method
from capfl.config.schema import MethodConfig
from capfl.errors import ConfigError
from capfl.methods.combine import CorrectedB, ExactProduct, TruncatedProduct, WeightedMean
from capfl.methods.factors import ALTERNATING, NOTHING, ONLY_A, ONLY_B
from capfl.methods.given import GivenPeers
from capfl.methods.method import Method
from capfl.methods.order import Order
from capfl.methods.peers import Peers
from capfl.methods.posterior import Posterior
from capfl.methods.ranks import AllRanks, Shares
from capfl.methods.take_home import AfterSteps, NearServer

Settings = Mapping[str, Any]
TURNS = 6  # of CA-PFL in a round: one after the other in groups of up to six (docs/LOG.md, 2026-11-29)


@dataclass(frozen=True)
class Row:
    """How a method is made of the run's seed and of those of its settings that a config gives.

    ``settings`` are keys of the config's section ``method`` that the row uses; the parts have their defaults.
    """

    make: Callable[[int, Settings], Method]
    settings: tuple[str, ...] = ()


def _of(settings: Settings, **names: str) -> dict[str, Any]:
    """Arguments of a part, each by the name of its setting, of which only those that are given."""
    return {argument: settings[name] for argument, name in names.items() if name in settings}


def _ca_pfl(seed: int, given: Settings) -> Method:
    named = isinstance(given.get("peers"), Mapping)
    return Method(
        "ca-pfl", "groups of clients with similar data train in turn, each client with its own ranks", "YanDang/CA-PFL",
        grouping=GivenPeers(given["peers"]) if named
        else Peers(**_of(given, distance="peers", dim="rff_output_dim"), seed=seed),
        ranks=Posterior(
            **_of(given, alpha_s="alpha_s", alpha_p="alpha_p", hidden="mlp_hidden_dim", floor="rank_floor"),
            seed=seed,
        ),
        order=Order(TURNS),
        takes_home=AfterSteps(0.5),
        alpha_f=given.get("alpha_f", 0.1),
    )  # fmt: skip


def _fedit(seed: int, given: Settings) -> Method:
    proximal = bool(given.get("alpha_f"))
    return Method(
        "fedit",
        "federated averaging of LoRA" + (", held near the server's adapter (FedProx)" if proximal else ""),
        "arXiv:1812.06127" if proximal else "arXiv:2305.05644",
        **_of(given, alpha_f="alpha_f"),
    )


def _flexlora(seed: int, given: Settings) -> Method:
    shares = given.get("rank_shares")
    return Method(
        "flexlora", "mean of the products; clients may have unequal ranks", "arXiv:2402.11505",
        combine=TruncatedProduct(), ranks=Shares(shares) if shares else AllRanks(),
    )  # fmt: skip


def _ditto(seed: int, given: Settings) -> Method:
    near = NearServer(**_of(given, strength="alpha_f"))
    return Method("ditto", "FedIT, plus an adapter of each client's own", "arXiv:2012.04221", takes_home=near)


def _row(name: str, about: str, source: str, **parts: Any) -> Row:
    return Row(lambda seed, given: Method(name, about, source, **parts))


METHODS: dict[str, Row] = {
    "ca-pfl": Row(
        _ca_pfl,
        ("peers", "alpha_s", "alpha_p", "alpha_f", "rff_output_dim", "mlp_hidden_dim", "rank_floor"),
    ),
    "fedit": Row(_fedit, ("alpha_f",)),
    "fedex-lora": _row(
        "fedex-lora", "exact mean of B A, through a patch of the base", "arXiv:2410.09432", combine=ExactProduct()
    ),
    "lora-fair": _row(
        "lora-fair", "mean, then B corrected towards the mean of B A", "arXiv:2411.14961", combine=CorrectedB()
    ),
    "flexlora": Row(_flexlora, ("rank_shares",)),
    "ffa-lora": _row("ffa-lora", "A frozen, B averaged", "arXiv:2403.12313", factors=ONLY_B),
    "fedsa-lora": _row("fedsa-lora", "A averaged, B private", "arXiv:2410.01463", factors=ONLY_A),
    "rolora": _row("rolora", "B and A trained and averaged alternately", "arXiv:2502.01755", factors=ALTERNATING),
    "ditto": Row(_ditto, ("alpha_f",)),
    "local": _row("local", "every client alone", "reference", factors=NOTHING),
    "centralised": _row("centralised", "one model on all data", "reference", pooled=True),
}  # fmt: skip


def build(config: MethodConfig, seed: int = 0, rows: Mapping[str, Method] | None = None) -> Method:
    """The method that a run's config asks for.

    Args:
        rows: methods of the caller's own, by name. They have their settings already.

    Raises:
        ConfigError: no method has that name, or it does not use a setting that was given.
    """
    own, name = rows or {}, config.name
    given = {
        key: value for key in type(config).model_fields if key != "name" and (value := getattr(config, key)) is not None
    }
    check_method(config, own)
    method = own[name] if name in own else METHODS[name].make(seed, given)
    for key in (key for key in OF_ALL if key in given):
        if method.pooled or not method.factors.travel:
            raise ConfigError(f"method.{key}: clients of {name} do not learn from each other; leave it out")
    if "server_step" in given:
        if not isinstance(method.combine, WeightedMean):
            raise ConfigError(f"method.server_step: the server of {name} does more than add a mean; leave it out")
        method = replace(method, combine=WeightedMean(given["server_step"]))
    return replace(method, order=Order(given["turns"])) if "turns" in given else method


def describe() -> list[dict[str, str]]:
    """Every method's row, in words, and the settings of its own that it uses."""
    return [row.make(0, {}).describe() | {"settings": ", ".join(row.settings)} for row in METHODS.values()]

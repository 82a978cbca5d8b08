"""What server and clients agree on before the first round: method, codecs, the adapter that all begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from capfl import adapter as algebra
from capfl.config.schema import CodecConfig, Config, MethodConfig
from capfl.errors import ConfigError
from capfl.methods import Method, build
from capfl.methods.items import refuse_unprotected
from capfl.methods.secure import NoisySum, SecureMean, secure
from capfl.methods.take_home import AfterSteps, Own
from capfl.metrics import DEFAULTS
from capfl.roles.limits import Limits
from capfl.types import Adapter, Group
from capfl.wire import (
    MODELS,
    Codec,
    Records,
    down_codec,
    full_codec,
    is_relayed,
    nothing,
    relayed,
    schema_hash,
    up_codec,
)  # fmt: skip
from capfl.wire.noised import Noised
from capfl.wire.summed import Summed
from capfl.wire.totals import Totals


@dataclass(frozen=True)
class Agreement:
    """What server and clients agreed on.

    Attributes:
        initial: the adapter that everybody can derive from the seed, and the template that changes are decoded against.
        base: identifies the base model.
        models: those that clients score at the end, as far as the method has them.
        metrics: what these are measured by.
        keep_best: does a client keep the best of its own models? Otherwise the last.
        limits: of what a client may claim; None: no bounds.
        items_protected: does noise hide items? Then clients say 0 for training losses, and no update is made twice.
    """

    method: Method
    codec: CodecConfig
    initial: Adapter
    base: str = ""
    seed: int = 0
    models: tuple[str, ...] = MODELS
    metrics: tuple[str, ...] = DEFAULTS
    keep_best: bool = False
    limits: Limits | None = None
    items_protected: bool = False

    def __post_init__(self) -> None:
        if self._scaled_again and (self.codec.down_density or 1.0) < 1:
            raise ConfigError(
                f"codec.down_density: with {self.method.name} the server changes all elements, so a random "
                "part of its answer would be scaled twice; leave it out, or set codec.compensation to "
                "'feedback'"
            )

    # -- codecs and records ----------------------------------------------------------------------------

    @cached_property
    def up(self) -> Codec:
        return up_codec(self.codec, self.seed, self.method.order.turns > 1)

    @cached_property
    def down(self) -> Codec:
        if self._scaled_again:
            return full_codec(self.codec, self.seed)
        return down_codec(self.codec, self.seed, self.method.order.turns > 1)

    @property
    def _scaled_again(self) -> bool:
        """Would a part of the server's answer be scaled twice for what is left out?

        A random mask is scaled by 1 / p. Clients' changes are sent by it; their mean has just these elements and is
        sent whole. What a server rewrites has all elements, and clients of different ranks have different masks.
        """
        return self.up.scales and (self.method.combine.rewrites or self.method.ranks.differ)

    @property
    def records_up(self) -> Records:
        return Records(self.method.grouping.up, self.method.ranks.up)

    @property
    def records_down(self) -> Records:
        return Records(self.method.grouping.down, self.method.ranks.down)

    @cached_property
    def schema(self) -> bytes:
        return schema_hash(self.initial, self.base)

    # -- secure aggregation ----------------------------------------------------------------------------

    @property
    def secure(self) -> bool:
        """Does the server see sums of updates alone?"""
        return isinstance(self.method.combine, SecureMean)

    @property
    def shares(self) -> bool:
        """Does that hold against a server that lies?"""
        return isinstance(self.method.combine, SecureMean) and self.method.combine.shares

    def fewest(self, clients: int) -> int:
        """How many of the clients that gave keys have to be in a sum."""
        assert isinstance(self.method.combine, SecureMean)
        return self.method.combine.fewest(clients)

    def summed(self, round: int, number: int, clients: int, importance: Tensor | None = None) -> Summed:
        """How the updates of a round become numbers that can be summed.

        Args:
            number: of the version that comes after the one that clients were sent.
            clients: how many may be in the sum.
            importance: of the ranks, as for ``Codec.encode``.

        Raises:
            WireError: they are too many.
        """
        names = self.method.factors.sent(round, self.initial)
        part, combine = {name: self.initial[name] for name in names}, self.method.combine
        if isinstance(combine, NoisySum):
            noise, counted = combine.noise, combine.counted(clients)
            return Noised(self.up, part, self.initial, number, clients, noise.clip, noise.multiplier, counted)
        said = self.method.ranks.n_summed(sum(algebra.ranks(self.initial).values()))
        return Summed(self.up, part, self.initial, number, clients, importance, said)

    def totals(self, clients: int) -> Totals:
        """How the scores of so many clients at most become numbers that can be summed. Raises WireError: too many."""
        return Totals(self.scored, self.metrics, algebra.ranks(self.initial), clients)

    # -- versions of an adapter ------------------------------------------------------------------------

    @cached_property
    def _first(self) -> Group:
        return self.method.start(self.initial).everybody

    @property
    def version_0(self) -> Adapter:
        """What every client knows of the server's adapter before it is sent anything."""
        return self._first.known

    @cached_property
    def template(self) -> Adapter:
        """Every tensor that a version may have: the factors, and the patch of a method that has one."""
        return self.initial | self.version_0

    @cached_property
    def nothing(self) -> bytes:
        """The difference between two versions that are the same."""
        return nothing(self.initial)

    @property
    def always_whole(self) -> bool:
        """Is everybody sent the whole adapter every round, and need not keep it?"""
        return self.down.exact and not self.method.combine.relays

    def next_version(self, version: Adapter, difference: bytes, number: int) -> Adapter:
        """The version of a number, from the one before it and what was sent. Raises WireError: it is damaged."""
        if not is_relayed(difference):
            return algebra.add(version, self.down.decode(memoryview(difference), self.initial, number))
        fold = self.method.combine.start(version, number)
        for weight, body in relayed(difference):
            fold.add(self.up.decode(body, self.initial, number), float(weight))
        return fold.value()

    def whole(self, known: Adapter) -> Adapter:
        """The server's adapter as a client knows it: a version, and the factors that do not travel."""
        return self._first.adapter | known

    # -- the end ---------------------------------------------------------------------------------------

    @cached_property
    def scored(self) -> tuple[str, ...]:
        """The models that a client scores at the end. A client that stands for all has no items of its own."""
        there = {"base": True, "global": self.method.has_server_model, "personal": True}
        return () if self.method.pooled else tuple(model for model in self.models if there[model])


def agreements(
    config: Config, initial: Adapter, base: str, rows: Mapping[str, Method] | None = None
) -> dict[str, Agreement]:
    """What is agreed on for the method of a run, and then for each of its references, by name.

    The local-only reference takes no last round of local steps where the method's personal model takes none.

    Args:
        rows: methods of the caller's own, by name.

    Raises:
        ConfigError: the method, or a setting of it, does not exist, or it cannot be had with secure aggregation
            or with privacy of items.
    """
    codec, seed = config.codec, config.seed
    main = build(config.method, seed, rows)
    main = secure(main, config.privacy, config.federation, up_codec(codec, seed, main.order.turns > 1))
    models = MODELS if config.evaluation.personal else tuple(model for model in MODELS if model != "personal")
    refuse_unprotected(main, config.privacy, "method.name")
    measures: dict[str, Any] = {
        "metrics": config.evaluation.metrics,
        "keep_best": config.evaluation.keep == "best",
        "items_protected": config.privacy.of_items is not None,
    }
    made = {main.name: Agreement(main, codec, initial, base, seed, models, **measures)}
    for name in config.evaluation.references:
        if name != main.name:
            method = build(MethodConfig(name=name))
            refuse_unprotected(method, config.privacy, "evaluation.references")
            if method.pooled and isinstance(main.combine, SecureMean):
                raise ConfigError(
                    f"evaluation.references: {name} needs all data in one place, and privacy.secure_aggregation "
                    "shows no client's score to compare with; leave it out"
                )
            takes_steps = config.evaluation.personal and not main.pooled and isinstance(main.takes_home, AfterSteps)
            if name == "local" and not takes_steps:
                method = replace(method, takes_home=Own())
            if name == "local" and isinstance(main.combine, SecureMean):  # no client says more in it
                method = replace(method, combine=SecureMean(shares=main.combine.shares))
            made[name] = Agreement(method, codec, initial, base, seed, ("personal",), **measures)
    return made


def refuse_pooled(made: Mapping[str, Agreement]) -> None:
    """Raises ConfigError where one of the methods needs everybody's data in one place."""
    for name, agreement in made.items():
        if agreement.method.pooled:
            raise ConfigError(
                f"{name} trains on all data in one place, which real sites cannot give; take it out of "
                "evaluation.references, or choose another method"
            )

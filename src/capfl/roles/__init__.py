"""The two sides of a round: bytes in, bytes out, state in, state out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from capfl.config.schema import CodecConfig, Config, MethodConfig
from capfl.errors import ConfigError
from capfl.methods import build
from capfl.methods.base import Method
from capfl.roles.door import Limits
from capfl.types import Adapter, Notes
from capfl.wire import MODELS, Codec, adding, down_codec, full_codec, relay, schema_hash, up_codec


def spent_on(notes: Notes, method: Method) -> dict[str, Any]:
    """How a message's budget is shared over ranks, by what client or server remember: arguments of ``Codec.encode``."""
    importance, alive = method.importance(notes), method.sends(notes)
    if importance is None:
        return {}
    return {"importance": importance.double().numpy(), "alive": None if alive is None else alive.numpy()}


@dataclass(frozen=True)
class Agreement:
    """What server and clients agreed on before the first round.

    ``initial`` is the adapter that everybody can derive from the seed. It is also the template that changes are
    decoded against. ``base`` identifies the base model. ``models`` are those that clients score at the end, as far as
    the method has them, and ``mix``, if given, is in place of the method's own. ``limits`` are of what a client may
    claim; None: no bounds.
    """

    method: Method
    codec: CodecConfig
    initial: Adapter
    base: str = ""
    seed: int = 0
    models: tuple[str, ...] = MODELS
    mix: float | None = None
    limits: Limits | None = None

    @cached_property
    def up(self) -> Codec:
        return up_codec(self.codec, self.seed)

    @cached_property
    def down(self) -> Codec:
        return full_codec(self.codec, self.seed) if self._scaled_again else down_codec(self.codec, self.seed)

    @property
    def _scaled_again(self) -> bool:
        """Would a part of the server's answer be scaled twice for what is left out?

        A random mask is scaled by 1 / p. Clients' changes are sent by it; their mean has just these elements and is
        sent whole. What a server rewrites has all elements.
        """
        return self.method.rewrites and self.up.unbiased  # a random mask, then

    def __post_init__(self) -> None:
        if self._scaled_again and (self.codec.down_density or 1.0) < 1:
            raise ConfigError(
                f"codec.down_density: {self.method.name} rewrites all elements at the server, so a random part of its "
                'answer would be scaled twice; leave it out, or set codec.compensation to "feedback"'
            )

    @cached_property
    def schema(self) -> bytes:
        return schema_hash(self.initial, self.base)

    @cached_property
    def version_0(self) -> Adapter:
        """What every client knows of the global adapter before it is told anything."""
        return self.method.broadcast(self.method.init_server(self.initial))

    @cached_property
    def template(self) -> Adapter:
        """Every tensor that a version may have: the factors, and the patch of a method that has one."""
        return self.initial | self.version_0

    @property
    def always_whole(self) -> bool:
        """Is everybody sent the whole adapter every round, and need not keep it?"""
        return self.down.exact and not self.method.relay

    def lead(self, version: Adapter, difference: bytes, number: int) -> Adapter:
        """The version of a number, from the one before it and what was sent. Raises WireError: it is damaged."""
        if not self.method.relay:
            return adding(self.down, self.initial)(version, difference, number)
        changes = (
            (self.up.decode(body, self.initial, number), float(weight))
            for weight, body in relay.unpack(memoryview(difference))
        )
        return self.method.relay(version, number, changes)

    def whole(self, known: Adapter) -> Adapter:
        """The server's adapter as a client knows it: a version, and the factors that do not travel."""
        return self._first | known

    @cached_property
    def scored(self) -> tuple[str, ...]:
        """The models that a client scores at the end. A client that stands for all has no items of its own."""
        there = {"base": True, "global": self.method.has_global, "personal": True}
        return () if self.method.pooled else tuple(model for model in self.models if there[model])

    @cached_property
    def _first(self) -> Adapter:
        return self.method.init_server(self.initial).adapter


def agreements(config: Config, initial: Adapter, base: str) -> dict[str, Agreement]:
    """What is agreed on for the method of a run, and then for each of its references, by name.

    The local-only reference takes no last round of local steps where the method's personal model takes none.

    Raises:
        ConfigError: the method, or a setting of it, does not exist.
    """
    codec, seed = config.agreed_codec, config.seed
    main = build(config.method, seed)
    models = MODELS if config.evaluation.personal else tuple(model for model in MODELS if model != "personal")
    made = {main.name: Agreement(main, codec, initial, base, seed, models, config.evaluation.mix)}
    for name in config.evaluation.references:
        if name != main.name:
            method = build(MethodConfig(name=name))
            if name == "local" and not (config.evaluation.personal and not main.pooled and main.personal is None):
                method = replace(method, personal=lambda memory: memory.adapter)
            made[name] = Agreement(method, codec, initial, base, seed, ("personal",))
    return made


def refuse_pooled(made: Mapping[str, Agreement]) -> None:
    """Raises ConfigError where one of the methods needs everybody's data in one place."""
    for name, agreement in made.items():
        if agreement.method.pooled:
            raise ConfigError(
                f"{name} is trained on everybody's data in one place, which sites of their own do not give; "
                "take it out of evaluation.references, or choose another method"
            )

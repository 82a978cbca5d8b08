"""One file a method. A new method is one new file plus one line in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from capfl.config.schema import MethodConfig
from capfl.errors import ConfigError
from capfl.methods.base import Method
from capfl.methods.capfl import Settings, capfl
from capfl.methods.centralised import centralised
from capfl.methods.ditto import ditto
from capfl.methods.fedex_lora import fedex_lora
from capfl.methods.fedit import fedit
from capfl.methods.fedprox import fedprox
from capfl.methods.fedsa_lora import fedsa_lora
from capfl.methods.ffa_lora import ffa_lora
from capfl.methods.flasc import flasc
from capfl.methods.flexlora import flexlora
from capfl.methods.flora import flora
from capfl.methods.hetlora import hetlora
from capfl.methods.local import local
from capfl.methods.lora_fair import lora_fair
from capfl.methods.rolora import rolora


@dataclass(frozen=True)
class Factory:
    """How a method is made of the settings that it uses and the run's seed."""

    make: Callable[[MethodConfig, int], Method]
    settings: tuple[str, ...] = ()


FEDPROX, DITTO = 0.01, 0.1  # alpha_f by default

METHODS: dict[str, Factory] = {
    "ca-pfl": Factory(lambda config, seed: capfl(Settings.of(config), seed), Settings.names()),
    "fedit": Factory(lambda config, seed: fedit(config.alpha_f or 0.0), ("alpha_f",)),
    "fedprox": Factory(
        lambda config, seed: fedprox(FEDPROX if config.alpha_f is None else config.alpha_f), ("alpha_f",)
    ),
    "ffa-lora": Factory(lambda config, seed: ffa_lora()),
    "rolora": Factory(lambda config, seed: rolora()),
    "fedsa-lora": Factory(lambda config, seed: fedsa_lora()),
    "lora-fair": Factory(lambda config, seed: lora_fair()),
    "fedex-lora": Factory(lambda config, seed: fedex_lora()),
    "flora": Factory(lambda config, seed: flora(seed, config.rank_shares or ()), ("rank_shares",)),
    "flexlora": Factory(lambda config, seed: flexlora(config.rank_shares or ()), ("rank_shares",)),
    "hetlora": Factory(
        lambda config, seed: hetlora(**_given(config, shares="rank_shares", gamma="prune_to", weight="prune_weight")),
        ("rank_shares", "prune_to", "prune_weight"),
    ),
    "flasc": Factory(
        lambda config, seed: flasc(**_given(config, start_density="start_density", rate="server_learning_rate")),
        ("start_density", "server_learning_rate"),
    ),
    "ditto": Factory(lambda config, seed: ditto(DITTO if config.alpha_f is None else config.alpha_f), ("alpha_f",)),
    "local": Factory(lambda config, seed: local()),
    "centralised": Factory(lambda config, seed: centralised()),
}


def _given(config: MethodConfig, **settings: str) -> dict[str, Any]:
    """Arguments by the names of their settings, of which only those that the config gives."""
    found = {argument: getattr(config, setting) for argument, setting in settings.items()}
    return {argument: value for argument, value in found.items() if value is not None}


def build(config: MethodConfig, seed: int = 0) -> Method:
    """The method that a run's config asks for.

    Raises:
        ConfigError: no method has that name, or it does not use a setting that was given.
    """
    if config.name not in METHODS:
        raise ConfigError(f"method.name: unknown method {config.name!r}; choose from {', '.join(METHODS)}")
    factory = METHODS[config.name]
    given = [name for name in type(config).model_fields if name != "name" and getattr(config, name) is not None]
    if unused := [name for name in given if name not in factory.settings]:
        users = [name for name, other in METHODS.items() if unused[0] in other.settings]
        raise ConfigError(f"method.{unused[0]}: {config.name} does not use it; leave it out or use {', '.join(users)}")
    return factory.make(config, seed)


def describe() -> list[dict[str, str]]:
    """Every method, as `capfl methods` lists it: its name, and by what people read what it does."""
    rows = []
    for name in METHODS:
        method = build(MethodConfig(name=name))
        after = "nothing" if method.pooled else "the server's adapter after its own steps"
        home = "its own" if method.personal else after
        rows.append({"name": name, "does": method.about, "travels": method.travels, "takes home": home,
                     "source": method.citation})  # fmt: skip
    return rows


__all__ = ["METHODS", "Factory", "Method", "build", "describe"]

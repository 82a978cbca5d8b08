"""One file a method. A new method is one new file plus one line in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from capfl.config.schema import MethodConfig
from capfl.errors import ConfigError
from capfl.methods.base import Method
from capfl.methods.capfl import Settings, capfl
from capfl.methods.centralised import centralised
from capfl.methods.fedit import fedit
from capfl.methods.local import local


@dataclass(frozen=True)
class Factory:
    """How a method is made of the settings that it uses and the run's seed."""

    make: Callable[[MethodConfig, int], Method]
    settings: tuple[str, ...] = ()


METHODS: dict[str, Factory] = {
    "ca-pfl": Factory(lambda config, seed: capfl(Settings.of(config), seed), Settings.names()),
    "fedit": Factory(lambda config, seed: fedit(config.alpha_f or 0.0), ("alpha_f",)),
    "local": Factory(lambda config, seed: local()),
    "centralised": Factory(lambda config, seed: centralised()),
}


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


__all__ = ["METHODS", "Factory", "Method", "build"]

"""One file a method. A new method is one new file plus one line in METHODS."""

from __future__ import annotations

from collections.abc import Callable

from capfl.config.schema import MethodConfig
from capfl.errors import ConfigError
from capfl.methods.base import Method
from capfl.methods.centralised import centralised
from capfl.methods.fedit import fedit
from capfl.methods.local import local

METHODS: dict[str, Callable[[MethodConfig], Method]] = {
    "fedit": lambda config: fedit(config.alpha_f),
    "local": lambda config: local(),
    "centralised": lambda config: centralised(),
}


def build(config: MethodConfig) -> Method:
    """The method that a run's config asks for.

    Raises:
        ConfigError: no method has that name, or it does not use a setting that was given.
    """
    if config.name not in METHODS:
        raise ConfigError(f"method.name: unknown method {config.name!r}; choose from {', '.join(METHODS)}")
    method = METHODS[config.name](config)
    if config.alpha_f and method.penalty is None:
        raise ConfigError(f"method.alpha_f: {config.name} has no proximal term; leave alpha_f at 0 or use fedit")
    return method


__all__ = ["METHODS", "Method", "build"]

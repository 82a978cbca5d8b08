"""The network engine: the same run over real sites, with Flower. Everything that imports flwr is in this folder."""

from __future__ import annotations

import importlib.metadata

from capfl.errors import ConfigError

FLOWER = "1.41.0"


def check_flower() -> None:
    """See that Flower is here, in the one version that ``pinned`` is written for.

    Raises:
        ConfigError: it is not, or in another version.
    """
    try:
        version = importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("the network needs Flower, which is not installed; pip install capfl[flower]") from None
    if version != FLOWER:
        raise ConfigError(
            f"the network is written for flwr {FLOWER} and rests on its private interfaces; here is {version}; "
            "pip install capfl[flower]"
        )

"""Secure aggregation: another way to combine, for a server that learns the sum of the changes and no single one.

The changes come to the server as whole numbers under masks that cancel in their sum (``maths.masks``, ``wire.summed``).
What the server makes of the sum is the adapter plus the mean change, of each group that the operator gives by itself.
All clients count alike: how many items each has is not said. With ``privacy.noise_multiplier`` clients clip their own
changes and add noise to them, so that the sum is private to the server as well. Here is what that is possible for;
docs/security.md has the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from capfl.config.privacy import Noise, PrivacyConfig
from capfl.config.schema import FederationConfig
from capfl.errors import ConfigError
from capfl.maths import masks
from capfl.maths.shares import fewest_opened, threshold
from capfl.methods.combine import WeightedMean
from capfl.methods.method import Method
from capfl.methods.robust import MEANS, refuse_no_mean, refuse_no_plain_mean, refuse_other_than_mean
from capfl.types import ClientId
from capfl.wire import Codec
from capfl.wire.summed import BITS

FEWEST = 3  # clients in a sum: of two, each would learn the other's change
_KEY = "privacy.secure_aggregation"


@dataclass(frozen=True)
class SecureMean(WeightedMean):
    """The adapter plus the mean of changes of which the server sees the sum alone.

    Attributes:
        shares: does that hold against a server that lies? Then clients deal out shares of their secrets.
    """

    shares: bool = False
    about = "mean of A, mean of B; the server sees only their sum (secure aggregation)"

    @property
    def passes_one(self) -> bool:  # type: ignore[override]
        return False

    def fewest(self, n: int) -> int:
        """How many of the n clients that gave keys have to be in the sum."""
        return max(FEWEST, threshold(n)) if self.shares else FEWEST


@dataclass(frozen=True, kw_only=True)
class NoisySum(SecureMean):
    """As ``SecureMean``, of changes that each client clips and adds its share of noise to (``maths.discrete``).

    The shares are so large that the fewest clients whose sum the server can learn have the whole noise. If nobody is
    missing there is more of it: at most by a third, as standard deviations go.
    """

    noise: Noise
    about = "mean of clipped changes; the server sees only their sum with noise (secure aggregation)"

    def fewest(self, n: int) -> int:
        return max(FEWEST, threshold(n))

    def counted(self, n: int) -> int:
        """The clients whose noise is enough, of n that gave keys."""
        return fewest_opened(n) if self.shares else self.fewest(n)


def secure(method: Method, privacy: PrivacyConfig, federation: FederationConfig, up: Codec) -> Method:
    """The method, with secure aggregation if the config asks for it. ``up`` encodes its updates.

    Raises:
        ConfigError: a sum is not enough for the method, the codec or another setting; says which, and what to do.
    """
    if privacy.secure_aggregation == "off":
        return method
    plain = isinstance(method.combine, WeightedMean)
    step = method.combine.step if isinstance(method.combine, WeightedMean) else 1.0
    refuse_no_mean(replace(method, combine=WeightedMean()) if plain else method, _KEY)
    refuse_no_plain_mean(method, _KEY)
    if method.grouping.describes:
        raise ConfigError(
            f"{_KEY}: clients of {method.name} tell the server what their data are like; say yourself who learns with "
            f'whom, as in method.peers = {{north = "a", south = "a", west = "a"}}, or use {MEANS}'
        )
    if method.ranks.differ:
        raise ConfigError(
            f"{_KEY}: clients of {method.name} have different ranks and send different elements; give all "
            f"clients all ranks, or use {MEANS}"
        )
    if federation.robust != "none":
        raise ConfigError(
            f"{_KEY}: federation.robust = {federation.robust} compares single changes, which the server does not see; "
            "leave one of them out"
        )
    noise = privacy.of_clients
    if noise:
        refuse_other_than_mean(replace(method, combine=WeightedMean()), "privacy.noise_multiplier")
    if up.values.name not in BITS:
        raise ConfigError(
            f"{_KEY}: values of {up.values.name} are not whole numbers, so they cannot be summed under "
            f"masks; use codec.values = {', '.join(BITS)}"
        )
    if up.mask == "top" and up.density < 1:
        raise ConfigError(
            f"{_KEY}: with codec.mask = top every client sends different elements, and their positions "
            "would be in clear; use codec.mask = random, or codec.density = 1"
        )
    if up.compensation == "feedback":
        raise ConfigError(
            f"{_KEY}: the server scales the sum as a whole, so a client does not know which rest to carry "
            "over; use codec.compensation = unbiased (or off, with codec.mask = top)"
        )
    masks.require()
    lying = privacy.secure_aggregation == "malicious-server"
    return replace(method, combine=NoisySum(step, lying, noise=noise) if noise else SecureMean(step, lying))


def refuse_few(method: Method, clients: Sequence[ClientId], asked: int) -> None:
    """See that no sum gives its clients away.

    Args:
        asked: how many of the clients take part in a round.

    Raises:
        ConfigError: they are too few in a round, or in a group; says which, and what to do.
    """
    if not isinstance(method.combine, SecureMean):
        return
    if asked < FEWEST:
        raise ConfigError(
            f"{_KEY}: {asked} clients take part in a round, and in a sum of two each would learn the other's change; "
            f"have at least {FEWEST} clients, and a federation.fraction that takes {FEWEST} of them"
        )
    if not method.grouping.divides:
        return
    members: dict[str, list[ClientId]] = {}
    for client, name in sorted(method.start({}, clients).group_of.items()):
        members.setdefault(name, []).append(client)
    for name, group in members.items():
        if 1 < len(group) < FEWEST:
            raise ConfigError(
                f"{_KEY}: method.peers has {' and '.join(group)} alone in group {name!r}, and in a sum of two each "
                f"would learn the other's change; put at least {FEWEST} into a group, or leave both out, and they "
                "train alone"
            )
    if max(map(len, members.values())) < FEWEST:
        raise ConfigError(
            f"{_KEY}: method.peers has no group of at least {FEWEST}, so there is nothing to sum; make one"
        )
    if asked < len(clients):
        raise ConfigError(
            f"{_KEY}: federation.fraction could take two of a group that method.peers gives, whose sum would tell each "
            "the other's change; set federation.fraction to 1"
        )

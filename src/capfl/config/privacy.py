"""The section ``privacy``: what the server and others may not learn of single clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capfl.config.section import PositiveFloat, Section


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on a sum, each part of which is clipped.

    Attributes:
        clip: L2 norm that a part has at most.
        multiplier: standard deviation of the noise, in units of clip.
        delta: of (epsilon, delta).
    """

    clip: float
    multiplier: float
    delta: float


class PrivacyConfig(Section):
    """Differential privacy, on if clip and noise_multiplier are given: of clients towards whoever sees the global
    adapter, or of a client's items towards everybody else; and secure aggregation, which hides clients' updates from
    the server."""

    secure_aggregation: Literal["off", "honest-server", "malicious-server"] = Field(
        "off",
        description=(
            "`honest-server`: a server that follows the protocol learns only the sum of the clients' "
            "changes and losses; `malicious-server`: so does any server, for one or two requests more"
        ),
    )
    protects: Literal["clients", "items"] = Field(
        "clients",
        description=(
            "what noise hides, with clip and noise_multiplier: `clients`, if the server adds noise to "
            "sums of changes; or `items` of a client, which adds it to the gradient of every step "
            "(DP-SGD)"
        ),
    )
    clip: PositiveFloat | None = Field(
        None, description="L2 norm to which a client's decoded change, or an item's gradient, is clipped"
    )
    noise_multiplier: PositiveFloat | None = Field(
        None, description="standard deviation of the noise on the sum of changes or gradients, in units of clip"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        1e-5, description="delta of (epsilon, delta); below 1 / clients, or 1 / a client's training items"
    )

    @model_validator(mode="after")
    def _is_on_or_off(self) -> Self:
        if (self.clip is None) != (self.noise_multiplier is None):
            raise ValueError("clip and noise_multiplier need each other; give both or neither")
        if self.protects == "items" and self.noise_multiplier is None:
            raise ValueError("protects = items needs noise; give clip and noise_multiplier, such as 1 and 1")
        return self

    @property
    def of_clients(self) -> Noise | None:
        """The noise that hides clients, if there is any."""
        return self._noise("clients")

    @property
    def of_items(self) -> Noise | None:
        """The noise that hides a client's items, if there is any."""
        return self._noise("items")

    def _noise(self, protects: str) -> Noise | None:
        if self.protects != protects or self.clip is None or self.noise_multiplier is None:
            return None
        return Noise(self.clip, self.noise_multiplier, self.delta)

"""The section ``privacy``: what the server and others may not learn of single clients."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capfl.config.section import PositiveFloat, Section


class PrivacyConfig(Section):
    """Differential privacy of clients towards whoever sees the global adapter, on if both numbers are given; and secure
    aggregation, which hides clients' updates from the server."""

    secure_aggregation: Literal["off", "honest-server", "malicious-server"] = Field(
        "off",
        description="`honest-server`: the server learns the sum of the clients' changes and losses and no client's "
        "own, if it follows the protocol; `malicious-server`: whatever it says, at one request more",
    )
    clip: PositiveFloat | None = Field(None, description="L2 norm that a client's change, as decoded, is clipped to")
    noise_multiplier: PositiveFloat | None = Field(
        None, description="standard deviation of the noise on the sum of changes, in units of clip"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(1e-5, description="of (epsilon, delta); below 1 / clients")
    seed: Annotated[int, Field(ge=0)] | None = Field(
        None, description="for tests: noise that can be repeated, and protects from nobody who knows this number"
    )

    @model_validator(mode="after")
    def _is_on_or_off(self) -> Self:
        if (self.clip is None) != (self.noise_multiplier is None):
            raise ValueError("clip and noise_multiplier make sense together only; give both or neither")
        return self

    @property
    def on(self) -> bool:
        return self.noise_multiplier is not None

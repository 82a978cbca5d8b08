"""What a run is: nested frozen sections, checked once, at the edge. `capfl keys` lists them."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capfl.config.data import DataConfig, PartitionConfig, usual_kind
from capfl.config.evaluation import EvaluationConfig
from capfl.config.privacy import PrivacyConfig
from capfl.config.runtime import RuntimeConfig
from capfl.config.section import NonNegative, Positive, PositiveFloat, Section
from capfl.types import EVERYBODY

ALL_LINEAR = "all-linear"
"""In ``lora.targets``: every linear layer of a decoder layer."""

_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")  # a folder is called so


class ModelConfig(Section):
    path: str = Field("smollm2", description="the base model: `smollm2`, `tiny`, a Hub name or a folder")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where the base model runs")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the base model")
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="quantise the base's linear layers with bitsandbytes"
    )


class LoraConfig(Section):
    rank: Positive = Field(8, description="rank r of every adapter")
    alpha: Annotated[float, Field(gt=0)] = Field(16.0, description="lora_alpha; updates are scaled by alpha / r")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout on the input of A")
    targets: tuple[str, ...] = Field(
        (ALL_LINEAR,), min_length=1, description="names of adapted linear layers, or `all-linear`"
    )
    layers: Annotated[str, Field(pattern=r"^(all|top:[1-9]\d*|top:([1-9]\d?|100)%|\d+(,\d+)*)$")] = Field(
        "top:20%",
        description="adapted layers: `all`, `top:N` (the last N), `top:N%` of them, or a list such as `4,5,6`",
    )


class TrainConfig(Section):
    epochs: Positive = Field(1, description="passes over a client's items in a round, unless steps is set")
    steps: Positive | None = Field(None, description="optimiser steps in a round, instead of epochs")
    batch_size: Positive = Field(8, description="items in a step")
    accumulate: Positive = Field(1, description="compute each step in this many parts, to save memory")
    checkpointing: bool = Field(
        False, description="keep fewer activations and compute them again: less memory, up to a third more time"
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        2e-3, description="learning rate of AdamW"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="how the learning rate falls from the first round to the last"
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="clip longer gradients to this norm")

    def steps_of(self, n_items: int) -> int:
        """Optimiser steps that a client with so many training items takes in a round."""
        return self.steps or self.epochs * math.ceil(n_items / self.batch_size)

    def share_of(self, n_items: int) -> float:
        """How likely each of a client's training items is in a step, where chance makes batches (``privacy``)."""
        return min(1.0, self.batch_size / n_items)


Density = Annotated[float, Field(gt=0, le=1)]


class MethodConfig(Section):
    """What is left out is the method's own default; what a method does not use is refused."""

    name: str = Field("ca-pfl", description="how clients learn from each other; see `capfl methods`")
    turns: Positive | None = Field(
        None,
        description=(
            "most turns of a group in a round; each turn starts from what the previous one left. 1: all "
            "members train together; by default 6 (ca-pfl) or 1"
        ),
    )
    peers: PositiveFloat | dict[str, str] | None = Field(
        None,
        description=(
            "ca-pfl: largest squared distance between the prompts of peers, in variances of a client's "
            "items, by default 0.08, twice that if their answers agree, four times that if they write; or each "
            "client's group, such as `north=a,south=a`: then no client describes its data, and clients without a "
            "group train alone"
        ),
    )
    server_step: PositiveFloat | None = Field(None, description="factor on a group's mean change; by default 1")
    alpha_f: NonNegative | None = Field(
        None,
        description="weight of alpha_f / 2 ||theta - theta_g||^2, which pulls clients towards the server's adapter "
        "after each step; by default 0.1 (ca-pfl, ditto) or 0; fedit with it is FedProx",
    )
    alpha_s: NonNegative | None = Field(
        None, description="ca-pfl: weight of the rank regulariser, sum of E[h / kappa] / n_train; by default 0.01"
    )
    alpha_p: NonNegative | None = Field(None, description="ca-pfl: weight of KL(q || prior) / n_train; by default 0.01")
    rff_output_dim: Annotated[int, Field(ge=2, multiple_of=2)] | None = Field(
        None, description="ca-pfl: number of random Fourier features of a client; by default 256"
    )
    mlp_hidden_dim: Positive | None = Field(
        None, description="ca-pfl: width of the network from features to rank importances; by default 16"
    )
    rank_floor: NonNegative | None = Field(
        None, description="ca-pfl: a rank below this share of the mean importance is dropped; by default 0.5"
    )
    rank_shares: tuple[Density, ...] | None = Field(
        None,
        min_length=1,
        description="flexlora: shares of lora.rank, such as 1,0.5, for clients in the order of their ids; default 1",
    )

    @model_validator(mode="after")
    def _names_groups(self) -> Self:
        if not isinstance(self.peers, dict):
            return self
        if not self.peers:
            raise ValueError("peers names no client; give each client's group, such as north=a, or leave it out")
        for name in self.peers.values():
            if name == EVERYBODY or not _GROUP.fullmatch(name):
                raise ValueError(
                    f"peers: a group cannot be called {name!r}; use letters, digits and _ . + -, such as a"
                )
        for key in ("rff_output_dim", "mlp_hidden_dim"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} is about clients' descriptions of their data, and with groups in peers they send "
                    "none; leave one of the two out"
                )
        return self

    @property
    def named(self) -> dict[str, str]:
        """The group of each client, where the operator says; else nobody's."""
        return self.peers if isinstance(self.peers, dict) else {}


ValuesName = Literal["fp32", "bf16", "8bit", "4bit", "3bit", "2bit", "ternary"]


class CodecConfig(Section):
    values: ValuesName = Field("ternary", description="encoding of each sent value; `ternary`: its sign alone, one bit")
    density: Density | None = Field(
        None, description="share of the values that are sent; by default 0.2 for ternary, otherwise 1"
    )
    down_values: ValuesName | None = Field(None, description="encoding on the downlink; by default as on the uplink")
    down_density: Density | None = Field(None, description="density on the downlink; by default as on the uplink")
    mask: Literal["random", "top"] = Field(
        "random", description="which values are sent: `random`, needs no positions; `top`, the largest of each tensor"
    )
    compensation: Literal["unbiased", "length", "feedback", "off"] | None = Field(
        None,
        description=(
            "`unbiased`: scale sent values by 1 / density (default of random); `length`: by its root "
            "(default of random if clients train in turn); `feedback`: add the unsent rest to the next "
            "change (default of top)"
        ),
    )

    @model_validator(mode="after")
    def _can_be_unbiased(self) -> Self:
        if self.compensation in ("unbiased", "length") and self.mask == "top":
            raise ValueError(
                "codec.compensation: the largest values are not a random sample, so scaling them would bias "
                "the mean; use codec.mask = random"
            )
        return self


class FederationConfig(Section):
    rounds: Positive = Field(10, description="rounds of training and aggregation")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of clients in each round")
    on_failure: Literal["stop", "skip", "retry"] = Field(
        "stop", description="when a client fails: `stop` the run, `skip` the client, or `retry` once and then skip it"
    )
    max_items: Annotated[int, Field(gt=0, lt=2**32)] | None = Field(
        None,
        description=(
            "refuse an update that claims more training items; by default a client counts for at most "
            "ten times the median claim. With secure aggregation and train.epochs, a mean update may be "
            "as long as the steps of so many items make it"
        ),
    )
    max_norm: PositiveFloat = Field(
        2.0, description="refuse an update longer than this many times the longest change that its local steps can make"
    )
    robust: Literal["none", "clip", "median", "trimmed"] = Field(
        "none",
        description=(
            "aggregation that limits lying clients: clip long changes (`clip`), or take the `median` of "
            "each value or the mean of its middle half (`trimmed`)"
        ),
    )


class Config(Section):
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of all random numbers of the run")
    out: str | None = Field(None, description="run folder, new or empty; by default runs/TIME-METHOD")
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    federation: FederationConfig = FederationConfig()
    train: TrainConfig = TrainConfig()
    method: MethodConfig = MethodConfig()
    codec: CodecConfig = CodecConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _fills_in_the_kind_of_partition(self) -> Self:
        if "kind" not in self.partition.model_fields_set:
            kind = {"kind": usual_kind(self.data.sets)}
            object.__setattr__(self, "partition", self.partition.model_copy(update=kind))  # the section is frozen
        return self

    @model_validator(mode="after")
    def _has_validation_items_where_it_needs_them(self) -> Self:
        needs = {"keep = best": self.evaluation.keep == "best", "patience": self.evaluation.patience is not None}
        if found := [key for key, needed in needs.items() if needed and not self.partition.validation]:
            raise ValueError(f"evaluation.{found[0]} needs validation items; set partition.validation above 0")
        return self

    @model_validator(mode="after")
    def _clips_once(self) -> Self:
        if self.privacy.of_clients and self.federation.robust != "none":
            raise ValueError(
                f"privacy and federation.robust = {self.federation.robust} both replace the mean of the "
                "changes; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _gives_every_item_a_gradient_of_its_own(self) -> Self:
        runtime, quantization = self.runtime, self.model.quantization
        problems = {
            "runtime.clients_per_pass": (runtime.clients_per_pass > 1, "items have a pass for themselves; set it to 1"),
            "runtime.compile": (runtime.compile, "graphs are of one adapter, and items have copies; leave it out"),
            "model.quantization": (quantization == "8bit", "8-bit products mix all rows; set it to 4bit"),
        }
        for key, (found, why) in problems.items():
            if found and self.privacy.of_items:
                raise ValueError(f"{key}: with privacy.protects = items, {why}")
        return self

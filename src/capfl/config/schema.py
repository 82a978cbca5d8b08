"""What a run is: nested frozen sections, checked once, at the edge. `capfl keys` lists them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    path: str = Field("smollm2", description="`smollm2`, `tiny`, a Hub name or a folder")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where the base model lives")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the base")
    quantization: Literal["none", "8bit", "4bit"] = Field("none", description="bitsandbytes base, CUDA only")


class LoraConfig(Section):
    rank: Positive = Field(8, description="rank r of every adapter")
    alpha: Annotated[float, Field(gt=0)] = Field(16.0, description="lora_alpha; updates are scaled by alpha / r")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout on the input of A")
    targets: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1, description="names of adapted linear layers")
    layers: Annotated[str, Field(pattern=r"^(all|top:[1-9]\d*|\d+(,\d+)*)$")] = Field(
        "all", description="`all`, `top:N` (the last N layers) or a list such as `4,5,6`"
    )


class DataConfig(Section):
    sets: tuple[str, ...] = Field(("helpdesk",), min_length=1, description="data sets by name, or paths of JSONL files")
    dir: str | None = Field(None, description="folder of NAME/SPLIT.jsonl in the Hub's row schema; without it, the Hub")
    split: str = Field("train", description="split that the clients share out between them")
    limit: Positive | None = Field(None, description="items taken from each data set, at random")
    scoring: Literal["letter", "text"] = Field("letter", description="`letter`: next-token logits; `text`: likelihood")
    labels: tuple[str, ...] | None = Field(
        None,
        description="all labels of text-and-label files, in the order of their letters; by default each file's own",
    )
    max_length: Annotated[int, Field(ge=8)] = Field(256, description="tokens; a longer prompt loses its beginning")
    sites: Annotated[int, Field(ge=2, le=12)] = Field(4, description="helpdesk: number of sites")
    items: Annotated[int, Field(ge=12)] = Field(400, description="helpdesk: requests for each site")
    conflict: Share = Field(0.5, description="helpdesk: 0, one code book for all; 1, no two sites agree on any code")

    @model_validator(mode="after")
    def _labels_are_several(self) -> Self:
        given = self.labels
        if given is not None and (len(set(given)) != len(given) or len(given) < 2):
            raise ValueError(f"labels {', '.join(given)} are not two or more different ones; name each once")
        return self


class PartitionConfig(Section):
    kind: Annotated[str, Field(pattern=r"^(iid|dirichlet|by_task|shards|conflict|by:\w+)$")] = Field(
        "by:site", description="`iid`, `dirichlet`, `by:FIELD`, `by_task`, `shards` or `conflict`"
    )
    clients: Positive | None = Field(None, description="number of clients; by default one a group, or 10")
    field: str = Field("label", description="what `dirichlet` and `shards` skew: any field of the items")
    alpha: Annotated[float, Field(gt=0)] = Field(0.5, description="dirichlet: concentration; smaller is more skewed")
    shards: Positive = Field(2, description="shards: number for each client")
    clusters: Annotated[int, Field(ge=2)] = Field(2, description="conflict: groups of clients with one code book each")
    conflict: Share = Field(1.0, description="conflict: share of labels that no two clusters agree on")
    size_sigma: NonNegative = Field(0.0, description="sigma of log-normal client sizes; 0 is equal sizes")
    max_items: Positive | None = Field(None, description="most items that a client keeps")
    min_items: Annotated[int, Field(ge=3)] = Field(10, description="fewest items that a client may have")
    validation: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share of a client's items")
    test: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share of a client's items")

    @model_validator(mode="after")
    def _leaves_training_items(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on")
        return self


class TrainConfig(Section):
    epochs: Positive = Field(1, description="passes over a client's items in a round, unless steps is set")
    steps: Positive | None = Field(None, description="optimiser steps in a round, instead of epochs")
    batch_size: Positive = Field(8, description="items in a step")
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(2e-3, description="AdamW")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="linear warm-up over a client's first steps")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="how the learning rate falls from the first round to the last"
    )
    weight_decay: NonNegative = Field(0.0, description="AdamW")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="gradient clipping")

    def steps_of(self, n_items: int) -> int:
        """Optimiser steps that a client with so many training items takes in a round."""
        return self.steps or self.epochs * math.ceil(n_items / self.batch_size)


Density = Annotated[float, Field(gt=0, le=1)]


class MethodConfig(Section):
    """What is left out is the method's own default; what a method does not use is refused."""

    name: str = Field("fedit", description="see `capfl methods`")
    alpha_f: NonNegative | None = Field(
        None, description="proximal term alpha_f / 2 ||theta - theta_g||^2; by default 0.01 (fedprox), 0.1 (ditto) or 0"
    )
    alpha_s: NonNegative | None = Field(
        None, description="ca-pfl: weight of the rank regulariser, sum of E[h / kappa] / n_train; by default 1e-4"
    )
    alpha_p: NonNegative | None = Field(None, description="ca-pfl: weight of KL(q || prior) / n_train; by default 1e-5")
    rff_output_dim: Annotated[int, Field(ge=2, multiple_of=2)] | None = Field(
        None, description="ca-pfl: random Fourier features of a client; by default 256"
    )
    mlp_hidden_dim: Positive | None = Field(None, description="ca-pfl: width of the modulator; by default 16")
    base_sparsity_ratio: Density | None = Field(
        None, description="ca-pfl: share of the values that is sent, another name for codec.density"
    )
    kappa: Literal["modulated", "free", "ard", "random"] | None = Field(
        None,
        description="ca-pfl: importances from the modulator (default), from no features, in closed form, or shuffled",
    )
    evidence: Literal["sensitivity", "norm"] | None = Field(
        None, description="ca-pfl: what importances follow: the loss's sensitivity to a rank (default), or B's columns"
    )
    budget: Literal["kappa", "uniform"] | None = Field(
        None, description="ca-pfl: ranks are sent and kept by importance (default), or all alike"
    )
    rank_floor: NonNegative | None = Field(
        None, description="ca-pfl: a rank below this share of the mean importance is dropped; by default 0.5"
    )
    peers: Literal["features", "all"] | None = Field(
        None, description="ca-pfl: a client learns with those whose data are like its own (default), or with all"
    )
    peer_distance: Annotated[float, Field(gt=0)] | None = Field(
        None, description="ca-pfl: largest squared distance of peers, in variances of a client's items; by default 0.08"
    )
    alternate: bool | None = Field(
        None, description="ca-pfl: train and send B in odd rounds and A in even ones; by default both in each"
    )
    gate: bool | None = Field(
        None, description="ca-pfl: scale each rank of a client's update by its importance over the mean; by default not"
    )
    rank_shares: tuple[Density, ...] | None = Field(
        None,
        min_length=1,
        description="hetlora, flexlora, flora: clients' shares of lora.rank, dealt out in turn by client id, such as "
        "1,0.5; by default 1,0.5,0.25 (hetlora) or 1",
    )
    prune_to: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="hetlora: a client that prunes itself keeps this share of its ranks; by default 0.85"
    )
    prune_weight: NonNegative | None = Field(
        None, description="hetlora: weight of ||B|| ||A|| of the ranks that may be pruned; by default 5e-3"
    )
    start_density: Density | None = Field(
        None, description="flasc: share of the global adapter's values, the largest, that clients get; by default 0.25"
    )
    server_learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="flasc: learning rate of the server's AdamW; by default 1e-3"
    )


FLASC: dict[str, object] = {  # the codec that the method is published with
    "values": "fp32", "density": 0.25, "down_density": 1.0, "mask": "top", "scope": "global", "compensation": "off",
}  # fmt: skip

ValuesName = Literal["fp32", "bf16", "8bit", "4bit", "3bit", "2bit", "ternary"]


class CodecConfig(Section):
    values: ValuesName = Field("ternary", description="how each value that is sent is written")
    density: Density | None = Field(
        None, description="share of the values that is sent; by default 1/3 of ternary, or 1"
    )
    down_values: ValuesName | None = Field(None, description="values on the downlink; by default as on the uplink")
    down_density: Density | None = Field(None, description="density on the downlink; by default as on the uplink")
    mask: Literal["random", "top"] = Field("random", description="`random`: costs no positions; `top`: the largest")
    scope: Literal["tensor", "global"] = Field("tensor", description="`top` of each tensor, or of all together")
    compensation: Literal["unbiased", "feedback", "off"] | None = Field(
        None,
        description="`unbiased`: scale what is sent (default of random); `feedback`: carry over the rest (of top)",
    )
    step_ahead: Share = Field(0.0, description="share of its own residual that a client adds to where it starts from")
    residual_decay: Share = Field(1.0, description="a client's residual is multiplied by it every round")
    residual_rounds: Positive | None = Field(None, description="a residual that is older is given up")
    warmup_rounds: Annotated[int, Field(ge=0)] = Field(0, description="rounds in which the density falls to its value")
    warmup_density: Density = Field(1.0, description="density in the first round of the warm-up")

    @model_validator(mode="after")
    def _can_be_unbiased(self) -> Self:
        if self.compensation == "unbiased" and self.mask == "top":
            raise ValueError("codec.compensation: the largest values are no fair sample; use codec.mask = random")
        return self


class FederationConfig(Section):
    rounds: Positive = Field(10, description="communication rounds")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of clients in each round")
    on_failure: Literal["stop", "skip", "retry"] = Field(
        "stop", description="a client that fails: `stop` the run, `skip` it, or `retry` and then skip it"
    )
    retries: Positive = Field(1, description="how often `retry` asks again")
    max_items: Annotated[int, Field(gt=0, lt=2**32)] = Field(
        1_000_000, description="most training items that a client may claim; its update counts for so many"
    )
    max_norm: PositiveFloat = Field(
        2.0, description="a longer update is refused; in units of the farthest that local steps lead"
    )
    robust: Literal["none", "clip", "median", "trimmed"] = Field(
        "none", description="`clip` changes before their mean, or of every element the `median` or `trimmed` mean"
    )
    robust_clip: PositiveFloat = Field(
        1.0, description="clip: longest change and most items that count, in units of the round's median"
    )
    robust_trim: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.25, description="trimmed: share of the values of a coordinate that is left out at either end"
    )


class PrivacyConfig(Section):
    """Differential privacy of clients towards whoever sees the global adapter; on if both numbers are given."""

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


class EvaluationConfig(Section):
    every: Annotated[int, Field(ge=0)] = Field(
        1,
        description="rounds between validations of the global model, which clients elsewhere are sent for it; 0: none",
    )
    max_items: Positive | None = Field(None, description="most items of a split that are scored for each client")
    batch_size: Positive = Field(32, description="sequences scored at once")
    personal: bool = Field(True, description="evaluate a personal model for each client at the end")
    mix: Share | None = Field(
        None, description="personal model: share of the way from the server's adapter to where local steps lead"
    )
    references: tuple[Literal["local", "centralised"], ...] = Field(
        ("local",), description="reference methods run beside this one, with the same data and steps"
    )


class RuntimeConfig(Section):
    cache: Literal["memory", "disk", "off"] = Field("disk", description="hidden states below the lowest adapted layer")
    cache_gib: Annotated[float, Field(gt=0)] = Field(4.0, description="GiB that the cache may take")
    cache_dir: str | None = Field(None, description="folder of hidden states that runs share, kept when they end")
    state_key: Annotated[str, Field(pattern=r"^(env|file):.+$")] | None = Field(
        None, description="where the key that encrypts clients' states is: `env:VARIABLE` or `file:PATH`"
    )
    threads: Positive | None = Field(None, description="CPU threads of torch; by default all cores")

    @model_validator(mode="after")
    def _keeps_nothing_in_clear(self) -> Self:
        if self.state_key and self.cache_dir:
            raise ValueError("hidden states, from which texts can be guessed, are kept in cache_dir in clear; leave "
                             "out cache_dir or state_key")  # fmt: skip
        return self


class Config(Section):
    seed: Annotated[int, Field(ge=0)] = Field(0, description="every random stream of the run is derived from it")
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

    @model_validator(mode="before")
    @classmethod
    def _fills_in_the_codec(cls, tree: Any) -> Any:
        """Of flasc, whose codec is part of the method, where the config says nothing else."""
        if not isinstance(tree, dict):
            return tree
        parts = [tree.get(key, {}) for key in ("method", "codec")]
        method, codec = (p.model_dump(exclude_unset=True) if isinstance(p, Section) else p for p in parts)
        if not isinstance(method, dict) or not isinstance(codec, dict) or method.get("name") != "flasc":
            return tree
        return tree | {"codec": FLASC | codec}

    @model_validator(mode="after")
    def _flasc_sends_the_largest(self) -> Self:
        if self.method.name == "flasc" and self.codec.mask != "top":
            raise ValueError("codec.mask: flasc sends the largest values; use codec.mask = top, or leave it out")
        return self

    @model_validator(mode="after")
    def _has_one_density(self) -> Self:
        ratio = self.method.base_sparsity_ratio
        if ratio is not None and self.codec.density not in (None, ratio):
            raise ValueError(
                f"method.base_sparsity_ratio {ratio} and codec.density {self.codec.density} name one thing; give one"
            )
        return self

    @model_validator(mode="after")
    def _clips_once(self) -> Self:
        if self.privacy.on and self.federation.robust != "none":
            raise ValueError(
                f"privacy clips every change and adds its noise to their mean, and federation.robust = "
                f"{self.federation.robust} is another; leave one of them out"
            )
        return self

    @property
    def agreed_codec(self) -> CodecConfig:
        """The codec, with the density that the method's config may give."""
        ratio = self.method.base_sparsity_ratio
        return self.codec if ratio is None else self.codec.model_copy(update={"density": ratio})

"""The section ``evaluation``: how models are measured, which are kept, and when a run ends."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capfl.config.section import Positive, Section
from capfl.errors import ConfigError
from capfl.metrics import DEFAULTS, metric


class EvaluationConfig(Section):
    every: Annotated[int, Field(ge=0)] = Field(
        1,
        description="rounds between validations of the server's adapter, which clients elsewhere are sent for it; 0: "
        "none",
    )
    batch_size: Positive = Field(32, description="sequences scored at once")
    personal: bool = Field(True, description="evaluate a personal model for each client at the end")
    references: tuple[Literal["local", "centralised"], ...] = Field(
        ("local",), description="methods run beside this one for comparison, with the same data and steps"
    )
    metrics: tuple[str, ...] = Field(
        DEFAULTS,
        min_length=1,
        description="what models are measured by, the most important first: of options `accuracy`; of completions "
        "`perplexity`, `token_accuracy`, `exact_match`, `token_f1`, `rouge_l`, `chrf`, `bleu`, or a function "
        "`module:function`",
    )
    generated: Positive = Field(
        32,
        description="test items of a client, at random, to which every model writes answers where a metric of "
        "completions asks for them: most of the time of an evaluation",
    )
    max_new_tokens: Positive | None = Field(
        None, description="tokens of a written answer; by default as many as the longest right one, 256 at most"
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="the personal model that a client keeps: of the `last` round, or of all rounds the one that was "
        "`best` on its validation items",
    )
    patience: Positive | None = Field(
        None, description="rounds without a lower validation loss after which a run ends; by default it goes on"
    )

    @model_validator(mode="after")
    def _metrics_exist(self) -> Self:
        try:
            for name in self.metrics:
                metric(name)
        except ConfigError as error:
            raise ValueError(f"metrics: {error}") from error
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics: {', '.join(self.metrics)} names one twice")
        if self.patience is not None and not self.every:
            raise ValueError("patience waits for validations, and every = 0 asks for none; give every = 1")
        return self

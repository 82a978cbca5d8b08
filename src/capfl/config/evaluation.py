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
        description=(
            "rounds between validations of the server's adapter; over a network each sends the adapter "
            "to all clients. 0: none"
        ),
    )
    batch_size: Positive = Field(32, description="sequences to score at once")
    personal: bool = Field(True, description="evaluate a personal model for each client at the end")
    references: tuple[Literal["local", "centralised"], ...] = Field(
        ("local",), description="methods to run for comparison, with the same data and steps"
    )
    metrics: tuple[str, ...] = Field(
        DEFAULTS,
        min_length=1,
        description=(
            "metrics, the most important first: for options `accuracy`; for completions `perplexity`, "
            "`token_accuracy`, `exact_match`, `token_f1`, `rouge_l`, `chrf`, `bleu`, or a function "
            "`module:function`"
        ),
    )
    generated: Positive = Field(
        32,
        description=(
            "random test items of a client for which every model writes answers, if a metric needs them: "
            "most of the time of an evaluation"
        ),
    )
    max_new_tokens: Positive | None = Field(
        None, description="most tokens of a written answer; by default as many as the longest right one, 256 at most"
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description=(
            "personal model that a client keeps: that of the `last` round, or the `best` of all rounds "
            "on its validation items"
        ),
    )
    patience: Positive | None = Field(
        None,
        description=(
            "end the run after this many rounds without a lower validation loss; by default it does not end early"
        ),
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
            raise ValueError("patience needs validations, and every = 0 makes none; set every = 1")
        return self

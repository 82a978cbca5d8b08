"""The section ``runtime``: what a run takes of the machine that it is on, and nothing of what it learns."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from capfl.config.section import Positive, Section

DISK, MEMORY, OFF = "disk", "memory", "off"  # of runtime.cache, which may also name a folder


class RuntimeConfig(Section):
    cache: str = Field(
        "disk",
        description=(
            "where to keep hidden states below the lowest adapted layer, to compute them only once: "
            "`disk`, until the run ends; `FOLDER/`, which runs may share; `memory`; `off`"
        ),
    )
    cache_gib: Annotated[float, Field(gt=0)] = Field(4.0, description="most GiB of the cache")
    state_key: Annotated[str, Field(pattern=r"^(env|file):.+$")] | None = Field(
        None, description="place of the key for clients' states and the disk cache: `env:VARIABLE` or `file:PATH`"
    )
    compile: bool = Field(
        False, description="compile the adapted layers (torch.compile): minutes at the start, then shorter local steps"
    )
    threads: Annotated[int, Field(gt=0, le=1024)] | None = Field(
        None, description="CPU threads of torch; by default all cores, or one for each of several workers"
    )
    workers: Positive = Field(
        1,
        description=("processes that train and score clients at the same time and share one base; Linux and CPU only"),
    )
    clients_per_pass: Positive = Field(
        1,
        description=(
            "simulations: clients of a turn to train in one pass of the base, each with its own adapter; "
            "faster for many small clients on a GPU, and equal to 1 except for rounding"
        ),
    )
    own_metrics: tuple[str, ...] = Field(
        (),
        description=("over a network: the only functions `module:function` of evaluation.metrics that a site allows"),
    )

    @field_validator("cache")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        if value in (DISK, MEMORY, OFF) or "/" in value:
            return value
        raise ValueError(f"{value!r} is none of {DISK}, {MEMORY} and {OFF}; a folder has a slash, as in ./{value}")

    @model_validator(mode="after")
    def _shares_what_it_caches(self) -> Self:
        if self.workers > 1 and self.cache == MEMORY:
            raise ValueError("workers share hidden states on disk; set cache to disk, or to off")
        if self.workers > 1 and self.clients_per_pass > 1:
            raise ValueError("workers train one client at a time each; set clients_per_pass to 1, or workers to 1")
        return self

"""Where rows come from, and who holds them: the sections ``data`` and ``partition``."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from capfl.config.section import Positive, Section, Share
from capfl.types import TooLong, Turns

BUILT_IN = ("helpdesk", "replies")
"""The names of the built-in data in ``data.sets``: requests with labels, and with written replies."""

COLUMNS = (
    "prompt", "completion", "messages", "conversations", "instruction", "input", "output", "system", "question",
    "choices", "answer", "text", "label",
)  # fmt: skip
"""What rows are read from, in one format or another: the keys of ``data.columns``."""


class DataConfig(Section):
    sets: tuple[str, ...] = Field(
        BUILT_IN[:1],
        min_length=1,
        description="names of public data sets, paths of your own files, `OWNER/NAME` or `OWNER/NAME:CONFIG` on the "
        "Hub, or built-in data: `helpdesk`, `replies`",
    )
    dir: str | None = Field(
        None, description="folder with NAME/SPLIT.jsonl of public data sets; by default they come from the Hub"
    )
    split: str = Field("train", description="split of a Hub or saved data set that the clients share")
    columns: dict[str, str] | None = Field(
        None,
        description=(
            "names of the columns in your own rows, such as `prompt=Question,completion=Answer`; see docs/data.md"
        ),
    )
    limit: Positive | None = Field(None, description="random items to use from each data set; by default all")
    scoring: Literal["letter", "text"] = Field(
        "letter", description="compare answers by their `letter` or by the likelihood of their `text`"
    )
    labels: tuple[str, ...] | None = Field(
        None,
        description=(
            "all labels of files with text and label, in the order of their letters; by default each file's own"
        ),
    )
    max_length: Annotated[int, Field(ge=8)] = Field(256, description="most tokens of a row, prompt and answer together")
    too_long: TooLong = Field(
        "cut-prompt",
        description=(
            "what to do with a longer row: drop the beginning of the prompt (`cut-prompt`; in a chat, "
            "the oldest turns), drop the end of the answer (`cut-answer`), or stop with an error "
            "(`refuse`)"
        ),
    )
    assistant_turns: Turns = Field(
        "all", description="answers of a chat to train on: `all` of the assistant's, or the `last`"
    )
    date: str | None = Field(
        None,
        description=(
            "date for chat templates that write today's date, such as 2026-11-29; by default the day the run began"
        ),
    )
    sites: Annotated[int, Field(ge=2, le=12)] = Field(4, description="built-in data: number of sites")
    items: Annotated[int, Field(ge=12)] = Field(400, description="built-in data: requests for each site")
    conflict: Share = Field(
        0.5,
        description=(
            "helpdesk: share of the kinds of request that every site labels differently; replies: above "
            "0, sites write in two styles"
        ),
    )

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, given: dict[str, str] | None) -> dict[str, str] | None:
        for key in given or {}:
            if key not in COLUMNS:
                raise ValueError(f"no format has a {key!r}; rows are read from {', '.join(COLUMNS)}")
        columns = list((given or {}).values())
        if twice := next((column for column in columns if columns.count(column) > 1), None):
            keys = " and ".join(key for key, column in (given or {}).items() if column == twice)
            raise ValueError(f"{keys} are read from the same column {twice!r}; give each its own")
        return given

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, given: str | None) -> str | None:
        if given is not None and datetime.date.fromisoformat(given).isoformat() != given:
            raise ValueError("write the day as 2026-11-29")
        return given

    @model_validator(mode="after")
    def _labels_are_several(self) -> Self:
        given = self.labels
        if given is not None and (len(set(given)) != len(given) or len(given) < 2):
            raise ValueError(f"labels {', '.join(given)} are not two or more different ones; name each once")
        return self


class PartitionConfig(Section):
    """Who holds what. The kind that is not given follows from ``data.sets``, see ``Config``."""

    kind: Annotated[str, Field(pattern=r"^(iid|dirichlet(:\w+)?|by_task|conflict|by:\w+)$")] = Field(
        "by:site",
        description="`by_task`: a client each file or set (default of several files); `iid`: random shares (default of "
        "public data); `by:FIELD`: a client each value; `dirichlet` or `dirichlet:FIELD`: skewed by label or field; "
        "`conflict`: random shares, half of the clients with labels changed",
    )
    clients: Positive | None = Field(
        None, description="number of clients; by default one for each value, file or set, or 10"
    )
    alpha: Annotated[float, Field(gt=0)] = Field(0.5, description="dirichlet: concentration; smaller is more skewed")
    spread: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="standard deviation of the logarithm of clients' sizes (log-normal); 0: equal sizes"
    )
    max_items: Positive | None = Field(None, description="most items that a client keeps; by default all")
    min_items: Annotated[int, Field(ge=3)] = Field(10, description="a client with fewer items is an error")
    validation: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share of a client's items for validation")
    test: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share of a client's items for its test")
    keep_together: str | None = Field(
        None,
        description=(
            "field of the rows, such as patient or template: items with the same value stay together in "
            "training, validation or test"
        ),
    )

    @model_validator(mode="after")
    def _leaves_training_items(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on")
        return self


SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Of files of rows; behind all but the last there may be .gz."""
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")


def is_path(name: str) -> bool:
    """Is an entry of ``data.sets`` a file or folder on this machine, and not a name?

    ``a/b`` is a name on the Hub, unless it ends as a file of rows does, or there is such a file or folder.
    """
    plain = name.lower().removesuffix(".gz")
    if plain.endswith(SUFFIXES) or "\\" in name:
        return True
    return "/" in name and (not _HUB.fullmatch(name) or Path(name).exists())


def is_hub(name: str) -> bool:
    """Is an entry of ``data.sets`` a data set of the Hub, ``OWNER/NAME`` or ``OWNER/NAME:CONFIG``?"""
    return bool(_HUB.fullmatch(name)) and not is_path(name)


def usual_kind(sets: Sequence[str]) -> str:
    """The ``partition.kind`` of data for which none is given: what is apart stays apart, public data are dealt out.

    A data set of the Hub that is named by its owner is public too.
    """
    if len(sets) == 1 and (sets[0] in BUILT_IN or is_path(sets[0])):
        return "by:site"
    return "by_task" if any(name in BUILT_IN or is_path(name) for name in sets) else "iid"

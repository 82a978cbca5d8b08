"""What a comparison is: a base config, and by name what each split and variant changes in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from capfl.config import Config, load_config
from capfl.config.keys import flat
from capfl.config.load import read_toml
from capfl.errors import ConfigError
from capfl.metrics import metric

Name = Annotated[str, StringConstraints(pattern=r"^[\w-]+$")]  # a part of a folder's name: no dots
Value = bool | int | float | str | list[str] | list[int] | dict[str, str]
OWN = ("seed", "out")  # what a comparison sets by itself


class Changes(BaseModel):
    """Keys of a config and their values, dotted (`"train.steps" = 6`) or as TOML tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    about: str = ""
    settings: dict[str, Value] = {}

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        own = {key: value for key, value in given.items() if key in cls.model_fields and key != "settings"}
        settings = dict(flat({key: value for key, value in given.items() if key not in own}))
        if taken := [key for key in OWN if key in settings]:
            raise ValueError(f"{' and '.join(taken)} cannot be set here: the comparison sets them for each run")
        return {**own, "settings": settings}


class Split(Changes):
    """Who holds what. ``keep`` takes rows of the data files by a field: ``keep.domain = ["banking", "home"]``."""

    keep: dict[str, list[str]] = {}


class Spec(BaseModel):
    """The file that `capfl compare` reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    base: str = Field(description="config that every run starts from, beside the spec")
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0, 1, 2], min_length=1)
    rows: str | None = Field(None, description="Python file of methods that variants may name, beside the spec")
    score: Literal["personal", "shared"] = Field("personal", description="adapter whose score is compared")
    metrics: list[str] = Field([], description="of evaluation.metrics, a table each; by default the first of them")
    baseline: str | None = Field(None, description="variant that the others are compared with; by default the first")
    common: Changes = Changes()
    splits: dict[Name, Split] = Field({"base": Split()}, min_length=1)
    variants: dict[Name, Changes] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_what_there_is(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} names one twice")
        for name in self.metrics:
            _known_metric(name)
        if self.baseline is not None and self.baseline not in self.variants:
            raise ValueError(f"baseline: {self.baseline!r} is none of {', '.join(self.variants)}")
        return self


def _known_metric(name: str) -> None:
    try:
        metric(name)
    except ConfigError as error:
        raise ValueError(f"metrics: {error}") from error


def _named(runs: Sequence[str]) -> str:
    """The first of some runs, and how many others there are."""
    return runs[0] + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a variant on a split with a seed."""

    split: str
    variant: str
    seed: int
    config: Config  # as the spec says it; where it runs is not in it

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.split}.{self.variant}.{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A spec with what the command line chose of it, every run checked."""

    spec: Spec
    rows: Path | None  # the file of methods; executed by the runs alone, not where a comparison is shown
    cells: tuple[Cell, ...]  # in the order in which they run: all of a seed first

    @property
    def baseline(self) -> str:
        return self.spec.baseline or next(iter(self.spec.variants))


def read_spec(path: Path) -> Spec:
    """The spec in a TOML file.

    Raises:
        ConfigError: it cannot be read, or lists every mistake in it.
    """
    try:
        return Spec.model_validate(read_toml(path, "spec of a comparison"))
    except ValidationError as error:
        mistakes = [
            ": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")]))
            for item in error.errors()
        ]
        raise ConfigError("\n".join(f"{path}: {mistake}" for mistake in mistakes)) from error


def make_plan(
    path: Path,
    splits: list[str] | None = None,
    only: list[str] | None = None,
    seeds: list[int] | None = None,
    data_dir: Path | None = None,
    model: str | None = None,
) -> Plan:
    """All runs of a spec, or those of the splits, variants and seeds that are named.

    Args:
        data_dir: ``data.dir`` of all runs, in place of the spec's.
        model: ``model.path`` of all runs, in place of the spec's.

    Raises:
        ConfigError: the spec, a name or the config of any run is wrong; lists every mistake.
    """
    spec = read_spec(path)
    for flag, named, known in (("--splits", splits, spec.splits), ("--only", only, spec.variants)):
        if unknown := [name for name in named or () if name not in known]:
            raise ConfigError(f"{flag} {unknown[0]}: choose from {', '.join(known)}")
    cells: list[Cell] = []
    mistakes: dict[str, list[str]] = {}  # and the runs that have each
    for seed, split, variant in product(seeds or spec.seeds, splits or spec.splits, only or spec.variants):
        settings = spec.common.settings | spec.splits[split].settings | spec.variants[variant].settings | {"seed": seed}
        settings |= {"data.dir": str(data_dir)} if data_dir else {}
        settings |= {"model.path": model} if model else {}
        try:
            config = load_config(path.parent / spec.base, settings)
            cells.append(Cell(split, variant, seed, config))
            if spec.metrics and not set(spec.metrics) & set(config.evaluation.metrics):
                wanted, measured = ", ".join(spec.metrics), ", ".join(config.evaluation.metrics)
                raise ConfigError(f"metrics: {wanted}: none of evaluation.metrics = {measured}; add it there")
        except ConfigError as error:
            for line in str(error).splitlines():
                mistakes.setdefault(line, []).append(f"{split}.{variant}")
    if mistakes:
        said = {line: _named(list(dict.fromkeys(runs))) for line, runs in mistakes.items()}
        raise ConfigError("\n".join(f"{path}: {runs}: {line}" for line, runs in said.items()))
    return Plan(spec, path.parent / spec.rows if spec.rows else None, tuple(cells))

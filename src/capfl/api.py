"""What a notebook or a script needs: ``capfl.run``, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capfl.config import Config, load_config
from capfl.config.keys import flags, meant
from capfl.config.load import changed
from capfl.config.names import did_you_mean
from capfl.data import deal_rows
from capfl.engines.serial import serial
from capfl.errors import ConfigError
from capfl.experiment import run as run_config
from capfl.methods import Method
from capfl.metrics import named
from capfl.report.progress import Callback, Callbacks
from capfl.result import Result

Rows = Iterable[Mapping[str, Any]]


def run(
    config: Config | Path | str | None = None,
    *,
    clients: Mapping[str, Rows | Path | str] | Sequence[Path | str] | None = None,
    method: str | Method | None = None,
    callbacks: Sequence[Callback] = (),
    **keys: Any,
) -> Result:
    """Run a federated experiment with all clients in this process.

        result = capfl.run(clients={"north": rows, "south": "south.jsonl"}, model="tiny", rounds=3)
        result.summary, result.clients["north"].personal, result.adapters, result.report()

    Args:
        config: a ``Config`` or the path of a TOML file; by default all keys have their defaults.
        clients: each client's data by its name: a list of dicts, a ``datasets.Dataset``, or the path of a file.
            Or a list of paths: each file is a client of that name. By default what ``data.sets`` and ``partition`` say.
        method: the name of a method (``capfl methods``), or a row of parts of your own (docs/methods.md); by default
            CA-PFL.
        callbacks: told of the run while it goes on, see ``capfl.Callback``.
        keys: any key of a config (``capfl keys``) by its flag with underscores: ``rounds=5``, ``lora_rank=16``,
            ``out="runs/first"``. Among ``metrics`` there may be functions f(answer, right answer, other fields of the
            row) -> between 0 and 1.

    Raises:
        ConfigError: a key or a value that there is not; lists every mistake.
        DataError: rows that cannot be used; says client, row and field.
        CapflError: whatever else went wrong.
    """
    known, given = flags(), dict[str, Any]()
    if unknown := [key for key in keys if key not in known]:
        hint = did_you_mean(meant(unknown[0])) or ";"
        raise ConfigError(f"there is no key {unknown[0]!r}{hint} `capfl keys` lists them")
    given |= {known[key]: value for key, value in keys.items()}
    if not isinstance(given.get("evaluation.metrics", ""), str):
        given["evaluation.metrics"] = named(given["evaluation.metrics"])
    rows: dict[str, Method] = {}
    if isinstance(method, Method):
        rows[method.name] = method
    if method is not None:
        given["method.name"] = method.name if isinstance(method, Method) else method
    if clients is not None and not isinstance(clients, Mapping):
        given["data.sets"] = tuple(str(path) for path in clients)
    if isinstance(config, Config):
        loaded = changed(config, given)
    else:
        loaded = load_config(Path(config) if config is not None else None, given)
    dealt = deal_rows(clients, loaded.data, loaded.partition, loaded.seed) if isinstance(clients, Mapping) else None
    summary, path = run_config(
        loaded, serial, Callbacks(callbacks), data=dealt, in_memory=dealt is not None, methods=rows
    )
    return Result(path, summary)

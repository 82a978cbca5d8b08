"""What a site gives its node when it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Setup:
    """The options of ``capfl flower node`` and ``capfl flower doctor``.

    Attributes:
        client: whose node it is.
        server: its address, HOST:PORT, or [HOST]:PORT of IPv6.
        data: the client's own file, which nobody else sees.
        state: folder of what the node remembers from round to round, and of its adapters.
        certificate: the server's.
        key: the node's own, of ``capfl flower keys``.
        peers: a folder with the public keys of all nodes, by which keys of secure aggregation are checked.
        runs: names of those that it takes part in, see ``Allowed``.
        max_epsilon: that all runs may take of the site's items together, see ``Budget``.
        settings: what the site decides for itself, by the keys of the config.
    """

    client: str
    server: str
    data: Path
    state: Path
    certificate: Path
    key: Path
    peers: Path | None = None
    runs: Sequence[str] = ()
    max_epsilon: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

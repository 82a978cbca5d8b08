"""Which runs a node takes part in: those that its operator has allowed by name, and one by each name.

A server that starts a run anew is told things a second time, sums of almost the same clients among them. What sites
have agreed on is one run, so the node remembers which one that was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from capfl.engines.flower.names import NAME, readable
from capfl.errors import CheckpointError, ConfigError, RunError, printable
from capfl.files import AGAIN, write_atomically

FILE = "runs.txt"  # in the node's folder: the runs that it has taken part in, oldest first, one a line
WHOLE = re.compile(r"(.+)-[0-9a-f]{16}")  # a run's whole name: of its folder, and of when and how it began


class Allowed:
    """The runs that a node takes part in.

    Args:
        names: of the folders of these runs, or their whole names. None: every run of its server, but those that are to
            hold against a server that lies.
        state: the node's folder.

    Raises:
        ConfigError: a name is none that a run can have.
    """

    def __init__(self, names: Sequence[str], state: Path) -> None:
        for name in names:
            if not re.fullmatch(NAME, name):
                raise ConfigError(
                    f"--run: {printable(repr(name), 80)} is no name of a run; give the last part of the folder that it "
                    "is started with, such as winter for --out runs/winter"
                )
        self._names, self._file = tuple(names), state / FILE

    def check(self, run: str, malicious: bool) -> None:
        """See that the node may take part in a run, by its whole name.

        Args:
            malicious: is it to hold against a server that lies?

        Raises:
            RunError: it may not; says what its operator can do.
            CheckpointError: which runs it has taken part in cannot be read.
        """
        if not self._names:
            if malicious:
                raise RunError(
                    f"run {run}: privacy.secure_aggregation: a malicious server could start the run twice and "
                    "compare the two sums; start the node with --run NAME, the name that all sites agreed on"
                )
            return
        if WHOLE.fullmatch(run) and run in self._names:
            return
        name = _folder(run)
        if name not in [readable(one) for one in self._names if not WHOLE.fullmatch(one)]:
            raise RunError(
                f"this node does not take part in run {run}, only in {', '.join(self._names)}; if all sites "
                f"agreed on it, start the node again with --run {name or run} as well"
            )
        begun = [other for other in self.known() if _folder(other) == name]
        if begun and run not in begun:
            raise RunError(
                f"run {run} is not {begun[-1]}, the run called {name} in which this node took part; if all "
                f"sites agreed to begin anew, start the node again with --run {run}"
            )

    def known(self) -> list[str]:
        """The runs that the node has taken part in, oldest first. Raises CheckpointError: they cannot be read."""
        try:
            return self._file.read_text(encoding="ascii").split()
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot read {self._file}, which has the runs that this node took part in: {error}; restore it from a "
                "copy, or write the names of the folders in runs/ into it, one a line"
            ) from error

    def remember(self, run: str) -> None:
        """From now on the node has taken part in a run. Raises CheckpointError: that cannot be written down."""
        if run not in (known := self.known()):
            write_atomically(self._file, "".join(f"{one}\n" for one in [*known, run]).encode(), AGAIN)

    def said(self) -> str:
        """What the node takes part in, for its operator. Raises CheckpointError: as ``known``."""
        if not self._names:
            return "takes part in every run that its server starts, but for those with malicious-server"
        known = self.known()
        begun = {name: [run for run in known if run == name or _folder(run) == readable(name)] for name in self._names}
        each = [f"{name} ({', '.join(runs) or 'not begun'})" for name, runs in begun.items()]
        return f"takes part in {', '.join(each)}, and in no other run"


def _folder(run: str) -> str:
    """The name of a run's folder, from its whole name; empty: that is none."""
    found = WHOLE.fullmatch(run)
    return found[1] if found else ""

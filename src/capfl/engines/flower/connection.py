"""How commands on the link's own machine reach it: through Flower's own commands, which answer in JSON."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from capfl.engines.flower.processes import environment, script
from capfl.errors import CapflError
from capfl.files import write_atomically

NAME = "capfl"  # of the connection, in Flower's own configuration


class LinkError(CapflError):
    """The link cannot be reached, or does not do what it is told to. Says what Flower said."""


@dataclass(frozen=True)
class Connection:
    """To the link whose folder this is."""

    home: Path

    def write(self, address: str, authority: Path | None) -> None:
        """Leave address and certificate of the link in its folder. No authority: plain text."""
        how: dict[str, object] = {"insecure": True}
        if authority is not None:
            how = {"root-certificates": str(authority)}
        text = tomli_w.dumps({"superlink": {"default": NAME, NAME: {"address": address, **how}}})
        write_atomically(self.home / "config.toml", text.encode())

    def command(self, *arguments: str) -> list[str]:
        """A ``flwr`` command to this link.

        Raises:
            LinkError: nobody has started a link here.
        """
        if not (self.home / "config.toml").is_file():
            raise LinkError(f"{self.home}: no link was ever started here; start one with: capfl flower link")
        return [script("flwr"), *arguments, NAME]

    def ask(self, *arguments: str, timeout: float = 60.0) -> dict[str, Any]:
        """The answer to a ``flwr`` command.

        Raises:
            LinkError: it fails.
        """
        command, words = self.command(*arguments), " ".join(arguments[:2])
        try:
            done = subprocess.run(
                [*command, "--format", "json"], env=environment(self.home), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=timeout, check=False,
            )  # fmt: skip
            answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except subprocess.TimeoutExpired as error:
            raise LinkError(f"flwr {words}: no answer within {timeout:.0f} s") from error
        except ValueError as error:
            raise LinkError(f"flwr {words}: {(done.stderr or done.stdout).strip()}") from error
        if not answer.get("success"):
            said = str(answer.get("error-message", answer))
            raise LinkError(f"flwr {words}: {said.splitlines()[-1] if said else 'failed'}")
        return answer

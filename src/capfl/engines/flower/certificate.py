"""How long the server's certificate is valid: said before it ends, and refused after."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509

from capfl.errors import ConfigError

SOON = datetime.timedelta(days=30)  # for which the end is said before it comes
DAY = 86400.0  # seconds between two looks
RENEW = "make another with `capfl flower keys` in a new folder, see docs/network.md, Keys that end"


def certificates(path: Path) -> list[x509.Certificate]:
    """All certificates in a file: a site trusts two while the server's is replaced.

    Raises:
        ConfigError: there is no certificate in it.
    """
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no certificate: {error}; give server.crt of `capfl flower keys`") from error


def check_certificate(path: Path, now: datetime.datetime | None = None) -> list[str]:
    """What is to be said of the certificates in a file: nothing, or that the last of them ends soon.

    Args:
        now: with a time zone; by default the time of this machine.

    Raises:
        ConfigError: there is none, or none is valid now; names the date and the remedy.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    found = certificates(path)
    started = [one for one in found if one.not_valid_before_utc <= now]
    if not started:
        begins = min(one.not_valid_before_utc for one in found)
        raise ConfigError(
            f"{path} is valid from {begins:%Y-%m-%d %H:%M} UTC, and this machine's time is "
            f"{now:%Y-%m-%d %H:%M}; set the clock"
        )
    ends = max(one.not_valid_after_utc for one in started)
    if ends <= now:
        raise ConfigError(
            f"{path} has expired on {ends:%Y-%m-%d}, and here it is {now:%Y-%m-%d}; if the clock is right, {RENEW}"
        )
    left = ends - now
    return [f"WARNING: {path} expires in {left.days} days, on {ends:%Y-%m-%d}; {RENEW}"] if left <= SOON else []


def reminder(path: Path, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Each ``next`` says, once a day, that a certificate ends soon or has ended."""
    due = clock()
    while True:
        if clock() >= due:
            due = clock() + DAY
            try:
                for warning in check_certificate(path):
                    say(warning)
            except ConfigError as error:
                say(f"WARNING: {error}")
        yield

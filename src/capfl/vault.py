"""Files that only their owner's key opens: AES-256-GCM, by the package cryptography.

The key is 64 hexadecimal digits, in an environment variable or in a file; it is never written anywhere. A file is the
magic number, 12 random bytes, and the ciphertext with its tag, for the name of the file; or for the run and the place
in it, of which a method's name and a client's are part. So a file that was changed, renamed, or taken from another run
or method is noticed. That an older file of the same place was put back is not.
"""

from __future__ import annotations

import os
from pathlib import Path

from capfl.errors import CheckpointError, ConfigError

MAGIC = b"CPFLAES1"
_NONCE = 12
MAKE_ONE = "make one with: openssl rand -hex 32"


class Vault:
    """Locks what goes to a file, and unlocks what comes from it, by one key of 32 bytes; None: nothing is locked.

    Args:
        run: what the files are of, and the folder that they are in; None: files of any run, known by their names.

    Raises:
        ConfigError: the package cryptography is not installed.
    """

    def __init__(self, key: bytes | None = None, run: tuple[str, Path] | None = None) -> None:
        self._key, self._run, self._cipher = key, run, None
        if key is None:
            return
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ConfigError(
                "runtime.state_key: needs the package cryptography; pip install 'capfl[encryption]'"
            ) from error
        self._cipher, self._wrong = AESGCM(key), InvalidTag

    def of_run(self, run: str, folder: Path) -> Vault:
        """The vault of the same key for the files in one run's folder, which may be moved with all that is in it.

        Args:
            run: a name that no other run has.
        """
        return Vault(self._key, (run, folder))

    def lock(self, data: bytes, path: Path) -> bytes:
        """What to write to ``path``."""
        if self._cipher is None:
            return data
        nonce = os.urandom(_NONCE)
        return MAGIC + nonce + self._cipher.encrypt(nonce, data, self._place(path))

    def unlock(self, blob: bytes, path: Path) -> bytes:
        """What was written to ``path``.

        Raises:
            CheckpointError: it is locked by another key or by none, or for another place, or was changed; names it.
        """
        if self._cipher is None:
            if blob.startswith(MAGIC):
                raise CheckpointError(f"{path} is encrypted; set runtime.state_key to the place of its key")
            return blob
        if not blob.startswith(MAGIC):
            raise CheckpointError(f"{path} is not encrypted, or incomplete; it was not written with runtime.state_key")
        nonce, sealed = blob[len(MAGIC) : len(MAGIC) + _NONCE], blob[len(MAGIC) + _NONCE :]
        try:
            return self._cipher.decrypt(nonce, sealed, self._place(path))
        except (self._wrong, ValueError) as error:  # ValueError: the nonce is cut off
            raise CheckpointError(
                f"{path} cannot be opened: it was changed, belongs to another run, or was written with "
                "another key; restore it from a copy, or give its key in runtime.state_key"
            ) from error

    def _place(self, path: Path) -> bytes:
        """What a file is encrypted for."""
        if self._run is None:
            return path.name.encode()
        run, folder = self._run
        return f"{run}\0{path.relative_to(folder).as_posix()}".encode()


def open_vault(where: str | None, out: Path) -> Vault:
    """The vault of a run in the folder ``out``, whose key is at ``env:VARIABLE`` or ``file:PATH``; None: none.

    Raises:
        ConfigError: there is no key, it is not one, or it lies in the folder that it is to protect.
    """
    if where is None:
        return Vault()
    kind, _, name = where.partition(":")
    if kind == "env":
        text = os.environ.get(name)
        if text is None:
            raise ConfigError(f"runtime.state_key: there is no environment variable {name}; {MAKE_ONE}")
    else:
        path = Path(name)
        if path.resolve().is_relative_to(out.resolve()):
            raise ConfigError(f"runtime.state_key: {path} is in the run folder that it protects; keep it elsewhere")
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise ConfigError(f"runtime.state_key: cannot read {path}: {error}; {MAKE_ONE} > {path}") from error
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != 32:  # and not a word of what was there instead
        raise ConfigError(f"runtime.state_key: what is in {name} is not 64 hexadecimal digits; {MAKE_ONE}")
    return Vault(key)

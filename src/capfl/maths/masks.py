r"""Masks that hide each client's numbers and cancel in the sum of all of them.

Every two clients u < v of a sum share a secret :math:`s_{uv}`, which both expand to the same random numbers. u adds
them, v subtracts them:

.. math:: y_u = x_u + \sum_{v > u} G(s_{uv}) - \sum_{v < u} G(s_{uv}) \pmod{2^k}, \qquad \sum_u y_u = \sum_u x_u.

Without all of its masks y_u is as good as random, whatever x_u is. Bonawitz et al., Practical Secure Aggregation for
Privacy-Preserving Machine Learning, ACM CCS 2017, section 4. The secret is an X25519 agreement (RFC 7748) that HKDF
with SHA-256 (RFC 5869) turns into 32 bytes, and G is the key stream of ChaCha20 (RFC 8439) under these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from capfl.errors import ConfigError
from capfl.rng import Draw

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY = 32  # bytes of a public key, and of the secret of a pair
NUMBER = 32  # bits of a number
WIDEST = 31  # bits of a value

Words = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Whole:
    """Whole numbers to be summed: many of few bits, and a few of 32.

    Attributes:
        values: (n,) unsigned, modulo 2^width.
        width: bits of a value, 1 to 31.
        numbers: (m,) uint32, modulo 2^32.
    """

    values: Words
    width: int
    numbers: Words

    def plus(self, other: Whole, sign: int = 1) -> Whole:
        """self + other, or self - other for a sign of -1, each modulo its own power of two.

        Raises:
            ValueError: they are not alike.
        """
        shapes = [(len(one.values), one.width, len(one.numbers)) for one in (self, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"numbers of the shapes (values, bits, numbers) {shapes[0]} and {shapes[1]} have no sum")
        add = np.add if sign > 0 else np.subtract
        kind = kind_of(self.width)
        values = add(self.values, other.values, dtype=kind) & kind((1 << self.width) - 1)
        return Whole(values, self.width, add(self.numbers, other.numbers, dtype=np.uint32))


def kind_of(width: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds values of so many bits."""
    return np.uint8 if width <= 8 else np.uint16 if width <= 16 else np.uint32


class PrivateKey:
    """A client's key for one sum; whoever knows it knows the client's masks.

    Args:
        secret: the key, 32 bytes; None: a new one.

    Raises:
        ConfigError: the package cryptography is not installed.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        require()
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        made = X25519PrivateKey.generate() if secret is None else X25519PrivateKey.from_private_bytes(secret)
        self._key: X25519PrivateKey = made
        self.public = self._key.public_key().public_bytes_raw()

    @property
    def private(self) -> bytes:
        """The key itself, 32 bytes."""
        return self._key.private_bytes_raw()

    def secret(self, other: bytes, context: bytes) -> bytes:
        """The secret, 32 bytes, of the two whose public keys these are.

        Args:
            other: the other's public key, 32 bytes.
            context: what the secret is for. Another context gives another secret, unrelated to this one.

        Raises:
            ValueError: ``other`` is no public key.
        """
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        shared = self._key.exchange(X25519PublicKey.from_public_bytes(other))
        keys = b"".join(sorted((self.public, other)))
        return HKDF(SHA256(), KEY, salt=None, info=b"capfl mask" + context + keys).derive(shared)


def masked(whole: Whole, masks: Iterable[tuple[bytes, int]]) -> Whole:
    """The numbers with G of each secret added (a sign of 1) or subtracted (-1), modulo their powers of two.

    Args:
        masks: secrets of 32 bytes, each used for nothing else, and their signs.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    kind = np.dtype(kind_of(whole.width)).newbyteorder("<")
    values, numbers = whole.values.astype(kind), whole.numbers.astype("<u4")
    zeros = bytes(numbers.nbytes + values.nbytes)
    stream = bytearray(len(zeros))  # of all masks in turn: memory for each would take as long as the cipher
    of_numbers = np.frombuffer(stream, "<u4", len(numbers))
    of_values = np.frombuffer(stream, kind, len(values), numbers.nbytes)
    for secret, sign in masks:
        Cipher(ChaCha20(secret, bytes(16)), mode=None).encryptor().update_into(zeros, stream)
        add = np.add if sign > 0 else np.subtract
        add(numbers, of_numbers, out=numbers)
        add(values, of_values, out=values)  # modulo 2^8, 2^16 or 2^32, of which 2^width is a divisor
    values &= kind.type((1 << whole.width) - 1)
    return Whole(values.astype(kind_of(whole.width), copy=False), whole.width, numbers.astype(np.uint32, copy=False))


def stream_of(secret: bytes) -> Draw:
    """Random bytes, one after the other, that follow from 32 secret ones: the key stream of ChaCha20."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    encryptor = Cipher(ChaCha20(secret, bytes(16)), mode=None).encryptor()
    return lambda n: encryptor.update(bytes(n))


def sealed(secret: bytes, text: bytes) -> bytes:
    """A text that only who knows the secret can read or write: ChaCha20-Poly1305 (RFC 8439), 16 bytes longer.

    Args:
        secret: 32 bytes, which seal one text and no other.
    """
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(secret).encrypt(bytes(12), text, None)


def unsealed(secret: bytes, box: bytes) -> bytes:
    """The text. Raises ValueError: it was sealed by another secret, or has been changed."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(secret).decrypt(bytes(12), box, None)
    except InvalidTag as error:
        raise ValueError("the text was sealed by another secret, or has been changed") from error


def require() -> None:
    """Raises ConfigError: the package cryptography is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "privacy.secure_aggregation: needs the package cryptography; pip install 'capfl[encryption]'"
        ) from error

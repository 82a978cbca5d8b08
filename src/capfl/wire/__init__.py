"""Messages as bytes and back. Cost is the length of what is encoded here, never a formula."""

from capfl.wire.codec import CODECS, Codec, codec
from capfl.wire.message import decode_broadcast, decode_update, encode_broadcast, encode_update

__all__ = ["CODECS", "Codec", "codec", "decode_broadcast", "decode_update", "encode_broadcast", "encode_update"]

"""Messages as bytes and back. Cost is the length of what is encoded here, never a formula."""

from capfl.wire.build import down_codec, up_codec
from capfl.wire.codec import Codec
from capfl.wire.downlink import advance, broadcast, receive
from capfl.wire.feedback import aged, compensate
from capfl.wire.header import schema_hash
from capfl.wire.message import Message, decode_broadcast, decode_update, encode_broadcast, encode_update

__all__ = [
    "Codec", "Message", "advance", "aged", "broadcast", "compensate", "decode_broadcast", "decode_update",
    "down_codec", "encode_broadcast", "encode_update", "receive", "schema_hash", "up_codec",
]  # fmt: skip

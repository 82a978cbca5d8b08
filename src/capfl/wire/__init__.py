"""Messages as bytes and back. Cost is the length of what is encoded here, never a formula."""

from capfl.wire.codec import Codec, compensate, down_codec, full_codec, up_codec
from capfl.wire.downlink import (
    advance,
    broadcast,
    differences,
    is_relayed,
    nothing,
    receive,
    relay,
    relayed,
    with_version,
)  # fmt: skip
from capfl.wire.header import round_of, schema_hash
from capfl.wire.message import (
    Message,
    Records,
    decode_broadcast,
    decode_introduction,
    decode_update,
    encode_broadcast,
    encode_introduction,
    encode_update,
)  # fmt: skip
from capfl.wire.scores import MODELS, decode_evaluation, decode_validation, encode_evaluation, encode_validation

__all__ = [
    "MODELS", "Codec", "Message", "Records", "advance", "broadcast", "compensate", "decode_broadcast",
    "decode_evaluation", "decode_introduction", "decode_update", "decode_validation", "differences", "down_codec",
    "encode_broadcast", "encode_evaluation", "encode_introduction", "encode_update", "encode_validation",
    "full_codec", "is_relayed", "nothing", "receive", "relay", "relayed", "round_of", "schema_hash", "up_codec",
    "with_version",
]  # fmt: skip

"""The codecs that a config describes."""

from __future__ import annotations

from capfl.config.schema import CodecConfig
from capfl.wire.codec import Codec
from capfl.wire.values import VALUES

COARSE = ("ternary", "2bit", "3bit")
THIRD = 1 / 3  # of ternary values, unless the config says otherwise: see docs/results/codecs.md


def up_codec(config: CodecConfig, seed: int) -> Codec:
    """From client to server. ``seed`` draws random masks."""
    return _codec(config, config.values, config.density, seed)


def down_codec(config: CodecConfig, seed: int) -> Codec:
    """From server to client."""
    return _codec(config, config.down_values or config.values, config.down_density or config.density, seed)


def full_codec(config: CodecConfig, seed: int) -> Codec:
    """From a server that rewrites the adapter: all elements, with levels unless the config says how.

    One bit has no zero, and a rewritten adapter has elements that hardly change: docs/LOG.md, 2026-11-28.
    """
    values = config.down_values or ("4bit" if config.values in COARSE else config.values)
    return _codec(config, values, 1.0, seed)


def _codec(config: CodecConfig, values: str, density: float | None, seed: int) -> Codec:
    return Codec(
        values=VALUES[values],
        density=density or (THIRD if values == "ternary" else 1.0),
        mask=config.mask,
        compensation=config.compensation or ("unbiased" if config.mask == "random" else "feedback"),
        seed=seed,
    )

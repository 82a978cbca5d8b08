"""What a run is. Read from a TOML file, `--set key=value` and flags; validated once, all mistakes at once."""

from capfl.config.load import load_config, to_toml
from capfl.config.schema import Config

__all__ = ["Config", "load_config", "to_toml"]

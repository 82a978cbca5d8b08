"""The command line: runs (``main``), adapters (``adapter``), networks (``flower``), and what they share."""

from capfl.cli.main import app

__all__ = ["app"]

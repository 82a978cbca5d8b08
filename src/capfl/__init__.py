"""Personalised federated fine-tuning of language models."""

from capfl.threads import wait_passively

__version__ = "0.1.0"

wait_passively()  # before anybody imports torch

"""The base model, its adapter, training and scoring. The only room that knows transformers and PEFT."""

import logging

# PEFT imports bitsandbytes where it is installed, and this warns of a faster kernel that is not there
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

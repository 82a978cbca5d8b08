"""From files to clients' items.

``load_items`` reads public data sets, your own JSON Lines files or the built-in helpdesk; ``partition`` deals
the items out to clients (``relabel`` then changes labels for the kind ``conflict``); ``split`` divides a
client's share into training, validation and test items; ``render`` turns an item into the prompt that the
model reads; ``batches`` orders one epoch. ``deal`` does the first four; ``deal_rows`` for rows in memory, ``deal_one``
for a client that has its own data alone; ``remarks`` says what came of it. All are pure functions of their arguments
and the seed.
"""

from capfl.data.batches import batches
from capfl.data.codebook import codebooks
from capfl.data.deal import clients_of, deal, deal_one, deal_rows, digest, remarks, share_out
from capfl.data.helpdesk import generate
from capfl.data.jsonl import read_file
from capfl.data.load import load_items
from capfl.data.partition import partition
from capfl.data.prompts import render
from capfl.data.relabel import relabel
from capfl.data.sources import DATASETS, Source, load
from capfl.data.split import Split, split

__all__ = [
    "DATASETS",
    "Source",
    "Split",
    "batches",
    "clients_of",
    "codebooks",
    "deal",
    "deal_one",
    "deal_rows",
    "digest",
    "generate",
    "load",
    "load_items",
    "partition",
    "read_file",
    "relabel",
    "remarks",
    "render",
    "share_out",
    "split",
]

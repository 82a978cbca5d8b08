"""From files to clients' items.

``load_items`` reads public data sets, your own JSON Lines files or the built-in helpdesk; ``partition`` deals
the items out to clients (``relabel`` then changes labels for the kind ``conflict``); ``split`` divides a
client's share into training, validation and test items; ``render`` turns an item into the prompt that the
model reads; ``batches`` orders one epoch, and ``by_chance`` draws a batch. ``deal`` does the first four; ``deal_rows``
for rows in memory, ``deal_one`` for a client that has its own data alone; ``remarks`` says what came of it. All are
pure functions of their arguments, the seed among them.
"""

from capfl.data.batches import batches, by_chance
from capfl.data.deal import clients_of, deal, deal_one, deal_rows, digest, remarks, share_out
from capfl.data.formats import check_file, read_file
from capfl.data.helpdesk import generate
from capfl.data.load import load_items, task_of
from capfl.data.partition import DEFAULT_CLIENTS, numbered
from capfl.data.prompts import render
from capfl.data.split import Split

__all__ = [
    "DEFAULT_CLIENTS", "Split", "batches", "by_chance", "check_file", "clients_of", "deal", "deal_one", "deal_rows",
    "digest", "generate", "load_items", "numbered", "read_file", "remarks", "render", "share_out", "task_of",
]  # fmt: skip

"""Train adapters for three sites together, from lists of rows in memory.

    python examples/three_sites.py [--model tiny] [--out runs/three_sites]

Two clinics sort requests alike; a shop has requests and labels of its own. Put your own rows in place of ``SITES``: at
least ten a site, and better a hundred.
"""

from __future__ import annotations

import argparse
from typing import Any

import capfl

CLINIC = {
    "appointment": ["I need to see the doctor", "can my visit be moved", "please cancel my appointment"],
    "billing": ["I do not understand my bill", "the invoice is too high", "can I pay in two parts"],
    "prescription": ["my tablets run out", "can you renew the inhaler", "I lost my prescription"],
}
SHOP = {
    "delivery": ["my parcel is late", "the parcel went to a neighbour", "when does the sofa come"],
    "payment": ["my card was charged twice", "the voucher does not work", "I cannot pay by card"],
    "returns": ["I want my money back", "the shoes are too small", "how do I send this back"],
}
DAYS = ["on Monday", "on Tuesday", "before noon", "this week", "today"]


def rows(requests: dict[str, list[str]], greeting: str) -> list[dict[str, str]]:
    """One row for each request and day."""
    return [
        {"text": f"{greeting} {text} {day}", "label": label}
        for label, texts in requests.items()
        for text in texts
        for day in DAYS
    ]


SITES = {
    "clinic_north": rows(CLINIC, "Hello,"),
    "clinic_south": rows(CLINIC, "Good morning,"),
    "shop": rows(SHOP, "Hi,"),
}


def train(model: str, out: str, **keys: Any) -> capfl.Result:
    """Args: keys, any keys of a config (`capfl keys`)."""
    settings = {"rounds": 5, "steps": 6, "batch_size": 8, "learning_rate": 4e-3} | keys
    return capfl.run(clients=SITES, model=model, out=out, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", default="runs/three_sites")
    args = parser.parse_args()
    result = train(args.model, args.out)
    for site, row in result.clients.items():
        print(f"{site}: alone {row.local_only:.0%}, personal {row.personal:.0%}, group {row.group or 'none'}")
    adapter = capfl.load(result.adapters["clients/shop"])
    print("the shop's adapter says:", adapter.predict(["My parcel has not come", "I want to send it back"]))


if __name__ == "__main__":
    main()

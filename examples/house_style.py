"""Sites that write texts: train on prompts and completions, and let an adapter and the base answer the same prompt.

    python examples/house_style.py [--model tiny] [--out runs/house_style]

The rows are the built-in replies: like requests to all sites, and every second site has another house style.
"""

from __future__ import annotations

import argparse
from typing import Any

import capfl
from capfl.data import replies
from capfl.samples import read_samples

ITEMS = 110  # of each site


def rows_of(sites: int, items: int) -> dict[str, list[dict[str, str]]]:
    """Each site's rows, as they would stand in a file of yours."""
    rows: dict[str, list[dict[str, str]]] = {}
    for item in replies.generate(sites, items, conflict=1.0, seed=0):
        rows.setdefault(item.fields["site"], []).append({"prompt": item.question, "completion": item.completion})
    return rows


def train(model: str, out: str, items: int = ITEMS, **keys: Any) -> capfl.Result:
    """Args: keys, any keys of a config (`capfl keys`)."""
    settings: dict[str, Any] = {"rounds": 5, "steps": 6, "batch_size": 8, "data_max_length": 384, "generated": 8}
    settings["metrics"] = ["exact_match", "rouge_l", "perplexity"]
    return capfl.run(clients=rows_of(4, items), model=model, out=out, **(settings | keys))


def show(result: capfl.Result, max_new_tokens: int = 64) -> None:
    for site, row in result.clients.items():
        print(f"{site}: right as a whole: alone {row.local_only:.0%}, personal {row.personal:.0%}")
    site = next(iter(result.clients))
    sample = read_samples(result.path)[site][0]
    adapter = capfl.load(result.adapters[f"clients/{site}"])
    print(f"\n{site} was asked: {sample.prompt}\nright:   {sample.right}")
    print("adapter:", adapter.generate([sample.prompt], max_new_tokens=max_new_tokens)[0])
    print("base:   ", adapter.generate([sample.prompt], max_new_tokens=max_new_tokens, base=True)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", default="runs/house_style")
    args = parser.parse_args()
    show(train(args.model, args.out))


if __name__ == "__main__":
    main()

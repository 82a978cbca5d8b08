"""A run over a network on this one machine: a server and a node for each of three sites, with TLS and keys.

    python examples/network.py [--model tiny] [--out runs/network]

These are the commands of docs/network.md, which go to several machines in the same way. It needs Flower:
``pip install 'capfl[flower]'``. Each process loads the model, so SmolLM2 takes about 1.1 GB for each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from three_sites import SITES

import capfl

FLOWER = [sys.executable, "-m", "capfl", "flower"]


def start(stack: contextlib.ExitStack, log: Path, *words: object) -> subprocess.Popen[bytes]:
    """A command in the background, which ends with ``stack``."""
    with log.open("wb") as output:
        process = subprocess.Popen([*FLOWER, *map(str, words)], stdout=output, stderr=subprocess.STDOUT)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


def wait_for_server(process: subprocess.Popen[bytes], log: Path) -> None:
    while "server ready" not in log.read_text(encoding="utf-8", errors="replace"):
        if process.poll() is not None:
            raise SystemExit(f"the server did not start:\n{log.read_text(encoding='utf-8', errors='replace')}")
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("runs/network"))
    args = parser.parse_args()
    out = args.out.absolute()
    out.mkdir(parents=True)  # an error if it is there: nothing is replaced
    for site, rows in SITES.items():
        (out / f"{site}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    subprocess.run([*FLOWER, "keys", out / "keys", "--nodes", ",".join(SITES)], check=True)

    with contextlib.ExitStack() as stack:
        port, log = free_port(), out / "server.log"
        server = start(stack, log, "server", "--keys", out / "keys", "--port", port, "--home", out / "server")
        wait_for_server(server, log)
        for site in SITES:
            start(
                stack, out / f"{site}.log", "node", "--server", f"127.0.0.1:{port}", "--client", site,
                "--data", out / f"{site}.jsonl", "--state", out / "nodes" / site,
                "--certificate", out / "keys" / "server.crt", "--key", out / "keys" / "nodes" / f"{site}.key",
            )  # fmt: skip
        labels = sorted({row["label"] for rows in SITES.values() for row in rows})
        files = [str(out / f"{site}.jsonl") for site in SITES]  # in a real network names count alone
        flags = ["--model", args.model, "--rounds", "2", "--steps", "4", "--labels", ",".join(labels)]
        run = [*FLOWER, "run", "--home", str(out / "server"), "--data", *files, *flags, "--out", str(out / "run")]
        subprocess.run(run, check=True)

    for site, row in capfl.Result.open(out / "run").clients.items():
        print(f"{site}: personal {row.personal:.0%}, {row.bytes_up} bytes up, {row.bytes_down} down")
        print("  its adapter is at the site:", out / "nodes" / site)


if __name__ == "__main__":
    main()

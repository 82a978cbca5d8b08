"""What secure aggregation costs a client and the server in a round: seconds, a client's bytes, and more noise.

    python benchmarks/secure.py [--repeats 5] [--parts time,server,bytes,noise]
        [--json docs/results/secure.json]

Seconds of the processor, on one thread, of one client of a sum, for an adapter of 2.3 million parameters (the shapes of
Llama-3.2-3B with r = 8 on q_proj and v_proj). They are those of the code that clients run (``roles.keyring``), step by
step, the median of the repeats, each with keys of its own:

- ``keys``: to make key pairs, to sign them, and to check the signatures of all others, as nodes do; with a malicious
  server also to deal out shares, sealed for each of the others, and to open what these have sealed;
- ``masks``: a secret with each of the others, expanded to as many numbers as travel, and added;
- ``open``: what is said in the end: a share of everybody's, or (honest server, more than three clients) the secret
  shared with one that has gone.

Training, quantising and packing are there without masks as well, and are not among them.

The server's seconds are of one sum of 30 clients of whom none, one or two have not answered: those of the code that the
server runs (``roles.sums``), from masked updates as they come to the mean change:

- ``read``: to unpack 28 to 30 messages and add them up;
- ``open``: to put secrets together from shares, agree on those of pairs, and take the masks out that are left;
- ``mean``: to make an adapter of the sum.

Bytes of a client and round, as ``capfl plan`` counts them (the third round; all answer), for an adapter of 488,448
parameters (SmolLM2, six layers, r = 8 on all linear layers) and for the one above. ``values`` are those of the values
alone: as many as the density says, of ceil(log2(n (L - 1) + 1)) bits each.

Noise (``privacy.noise_multiplier`` 1): how far the mean of 30 clients' changes, each of half to twice the length of the
clip and in a random direction, comes out from the mean of the clipped changes, over how far it does where the server
clips and adds the noise. The small adapter at density 0.2; norms over all values that travel.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from capfl import adapter as algebra
from capfl.config.privacy import PrivacyConfig
from capfl.config.schema import CodecConfig, FederationConfig, MethodConfig
from capfl.engines.flower.keys import make_keys, signer, verifier
from capfl.maths.masks import Whole, kind_of
from capfl.methods import build
from capfl.methods.private import private
from capfl.methods.secure import secure
from capfl.plan.traffic import measure
from capfl.rng import stream
from capfl.roles.agreement import Agreement
from capfl.roles.keyring import Keyring
from capfl.roles.sums import MaskedSum, read_masked
from capfl.types import Adapter, Broadcast
from capfl.wire import up_codec
from capfl.wire.noised import Noised
from capfl.wire.secure import Masked, Opened, encode_masked
from codec import llama_adapter

CODECS = {
    "one bit, density 0.2": CodecConfig(),
    "one bit, dense": CodecConfig(density=1, compensation="off"),
    "4bit, dense": CodecConfig(values="4bit", density=1, compensation="off"),
}
TABLE = {f"one bit, density {name}": CodecConfig(density=d) for name, d in (("1/3", 1 / 3), ("0.1", 0.1))}
SERVERS = ("honest-server", "malicious-server")
CLIENTS = (3, 7, 15, 30)
IDS = [f"site{i:02d}" for i in range(max(CLIENTS))]
GONE = (0, 1, 2)  # clients that have given a key and no update


def small_adapter() -> Adapter:
    """P = 488,448."""
    linear = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]
    shapes = [(f"{layer}.{k}", *shape) for layer in range(6) for k, shape in enumerate(linear)]
    downs = {f"{name}.A": torch.ones(8, d_in) for name, d_in, _ in shapes}
    return downs | {f"{name}.B": torch.ones(d_out, 8) for name, _, d_out in shapes}


def agreement_for(server: str, codec: CodecConfig, adapter: Adapter, **noise: float) -> Agreement:
    privacy = PrivacyConfig.model_validate({"secure_aggregation": server} | noise)
    method = secure(build(MethodConfig(name="fedit")), privacy, FederationConfig(), up_codec(codec, 0))
    return Agreement(method, codec, adapter)


@contextmanager
def timed(took: dict[str, float], step: str) -> Iterator[None]:
    """Adds seconds of the processor, on this thread."""
    began = time.thread_time()
    yield
    took[step] += time.thread_time() - began


def seconds(agreement: Agreement, n: int, proof: Path) -> dict[str, float]:
    """Of each step of one client of n, for one round."""
    clients, schema, took = IDS[:n], agreement.schema, dict.fromkeys(("keys", "masks", "open"), 0.0)
    me = clients[n // 2]
    others = [c for c in clients if c != me]

    rings = {c: Keyring(signer(proof / f"{c}.key"), verifier(proof)) for c in clients}
    offers = {c: rings[c].offer(1, c, schema, agreement.shares) for c in others}
    with timed(took, "keys"):
        offers[me] = rings[me].offer(1, me, schema, agreement.shares)
    request = Broadcast(1, me, 0, None, (), cohort=tuple(offers[c] for c in clients))
    if agreement.shares:
        dealt = {c: rings[c].deal(request, schema) for c in others}
        with timed(took, "keys"):
            rings[me].deal(request, schema)
        boxes = tuple(dealt[c][[one for one in clients if one != c].index(me)] for c in others)
        request = Broadcast(1, me, 0, None, (), shares=boxes)
    to_sum = agreement.summed(1, 1, n)
    values, numbers = np.ones(to_sum.n_values, kind_of(to_sum.width)), np.ones(to_sum.n_numbers, np.uint32)
    with timed(took, "keys"):
        rings[me].check(request, schema)
    with timed(took, "masks"):
        rings[me].hide(Whole(values, to_sum.width, numbers), request, schema)
    if n > 3 or agreement.shares:
        with timed(took, "open"):
            rings[me].open(1, [] if agreement.shares else [others[0]], agreement.fewest(n))
    return took


def server_seconds(agreement: Agreement) -> dict[int, dict[str, float]]:
    """Of each step of the server, by how many have gone, for one round of all clients."""
    schema, state = agreement.schema, agreement.method.start(agreement.initial, IDS)
    rings = {c: Keyring() for c in IDS}
    cohort = tuple(rings[c].offer(1, c, schema, agreement.shares) for c in IDS)
    to_sum = agreement.summed(1, 1, len(IDS))
    all_keys = MaskedSum(cohort, to_sum, state, agreement)
    if agreement.shares:
        for c in IDS:
            all_keys.dealt[c] = rings[c].deal(Broadcast(1, c, 0, None, (), cohort=cohort), schema)
    values, numbers = np.ones(to_sum.n_values, kind_of(to_sum.width)), np.ones(to_sum.n_numbers, np.uint32)
    replies = {}
    for c in IDS:
        given = {"shares": all_keys.shares_for(c)} if agreement.shares else {"cohort": cohort}
        request = Broadcast(1, c, 0, None, (), **given)
        rings[c].check(request, schema)
        hidden = rings[c].hide(Whole(values, to_sum.width, numbers), request, schema)
        replies[c] = encode_masked(Masked(1, c, hidden), agreement.up, schema)

    found = {}
    for gone in GONE:
        own, took = MaskedSum(cohort, to_sum, state, agreement), dict.fromkeys(("read", "open", "mean"), 0.0)
        with timed(took, "read"):
            for c in IDS[gone:]:
                own.add(read_masked(replies[c], agreement, own)[0])
        if own.needs_opening:
            for c in own.present:  # a client opens one sum alone, so it is asked on a copy of what it knows
                own.open(Opened(1, c, copy.copy(rings[c]).open(1, own.gone, own.fewest)))
        with timed(took, "open"):
            total = own.total()
        with timed(took, "mean"):
            to_sum.mean(total, len(own.present))
        assert (total.values == len(own.present)).all()
        found[gone] = took
    return found


def in_milliseconds(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of the total and of each step."""
    steps = {step: statistics.median(run[step] for run in runs) for step in runs[0]}
    total = statistics.median(sum(run.values()) for run in runs)
    return {step: round(1e3 * value, 1) for step, value in ({"total": total} | steps).items()}


def sizes(agreement: Agreement, n: int) -> dict[str, int]:
    """Bytes of a client of n in a round."""
    sent = [c for c in measure(agreement, IDS[:n]).charges([[IDS[:n]]] * 3) if c.round == 3]
    up, down = (sum(int(c.parts.sum()) for c in sent if c.direction == way) // n for way in ("up", "down"))
    codec, parameters = agreement.codec, sum(t.numel() for t in agreement.initial.values())
    values = parameters * (codec.density or 0.2) * agreement.summed(3, 3, n).width / 8
    return {"parameters": parameters, "up": up, "values": round(values), "down": down}


def noise_rows(n: int = 30) -> Iterator[dict[str, object]]:
    """How far the noisy mean is off, for values of each kind, and of each server."""
    adapter, on = small_adapter(), {"clip": 1.0, "noise_multiplier": 1.0}
    generator = torch.Generator().manual_seed(0)
    drawn = [{name: torch.randn(t.shape, generator=generator) for name, t in adapter.items()} for _ in range(n)]
    for values in ("ternary", "2bit", "4bit", "8bit"):
        codec = CodecConfig.model_validate({"values": values, "density": 0.2})
        up = up_codec(codec, 0)
        reach = up.reach(adapter, adapter, 1)
        changes = [algebra.scaled(t, 0.2 * (0.5 + k / n) / _length(t, reach)) for k, t in enumerate(drawn)]
        clipped = [{name: t * reach[name] / 0.2 for name, t in change.items()} for change in changes]
        clipped = [algebra.scaled(t, 1 / max(1.0, algebra.norm(t))) for t in clipped]
        exact = algebra.scaled(_sum(clipped), 1 / n)

        method = private(build(MethodConfig(name="fedit")), PrivacyConfig.model_validate(on), up, n, n)
        fold = method.combine.start(algebra.zeros(adapter), 1)
        for change in changes:
            fold.add(up.decode(memoryview(up.encode(change, adapter, 1)), adapter, 1), 1)
        central = algebra.norm(algebra.subtract(fold.value(), exact))

        row: dict[str, object] = {"values": values, "central": round(central, 3)}
        for server in SERVERS:
            agreement = agreement_for(server, codec, adapter, **on)
            summed = agreement.summed(1, 1, n)
            assert isinstance(summed, Noised)
            total = summed.whole(changes[0], 1.0, 1, draw=stream(1, "privacy", 0).bytes)
            for k, change in enumerate(changes[1:], 1):
                total = total.plus(summed.whole(change, 1.0, 1, draw=stream(1, "privacy", k).bytes))
            off = algebra.norm(algebra.subtract(summed.mean(total, n).change, exact))
            row |= {"n_values": summed.n_values, "steps": round(summed.grid.steps), server: round(off / central, 3)}
            row |= {f"{server} bits": summed.width, f"{server} up": sizes(agreement, n)["up"]}
        yield row


def _length(change: Adapter, reach: Adapter) -> float:
    return algebra.norm({name: t * reach[name] for name, t in change.items()})


def _sum(parts: list[Adapter]) -> Adapter:
    return {name: sum((part[name] for part in parts[1:]), start=t) for name, t in parts[0].items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", default="time,server,bytes,noise")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts, large = given.parts.split(","), llama_adapter(0)
    rows, of_server, found, noise = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        make_keys(Path(folder), IDS, [])
        for server in SERVERS if "time" in parts else ():
            for name, codec in CODECS.items():
                agreement = agreement_for(server, codec, large)
                for n in CLIENTS:
                    runs = [seconds(agreement, n, Path(folder) / "nodes") for _ in range(given.repeats)]
                    rows.append({"server": server, "codec": name, "clients": n} | in_milliseconds(runs))
                    print(rows[-1], flush=True)
    for server in SERVERS if "server" in parts else ():
        for name, codec in CODECS.items():
            rounds = [server_seconds(agreement_for(server, codec, large)) for _ in range(given.repeats)]
            for gone in GONE:
                took = in_milliseconds([one[gone] for one in rounds])
                of_server.append({"server": server, "codec": name, "clients": len(IDS), "gone": gone} | took)
                print(of_server[-1], flush=True)
    for adapter, codecs in ((small_adapter(), TABLE), (large, CODECS)) if "bytes" in parts else ():
        for server in SERVERS:
            for name, codec in codecs.items():
                agreement = agreement_for(server, codec, adapter)
                for n in CLIENTS:
                    found.append({"server": server, "codec": name, "clients": n} | sizes(agreement, n))
                    print(found[-1], flush=True)
    for row in noise_rows() if "noise" in parts else ():
        noise.append(row)
        print(row, flush=True)
    if given.json:
        told = {"milliseconds": rows, "of_server": of_server, "bytes": found, "noise": noise}
        before = json.loads(given.json.read_text()) if given.json.is_file() else {}  # of parts that were not asked for
        made = before | {name: of for name, of in told.items() if of}
        given.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()

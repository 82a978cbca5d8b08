"""Errors put into the code on purpose, one at a time, and the tests that have to notice.

    python tests/mutants.py [NAME ...]

Each is made in a copy of the package, so the code itself stays as it is. Prints a row for each, and ends with 1 if a
test did not notice one. `make test-slow` runs all of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
AGGREGATION = "tests/unit/test_aggregation.py"
RELAYS = "tests/conformance/test_relays.py"
CAPFL = "tests/unit/test_capfl.py"
SERVER = "tests/unit/test_capfl_server.py"
ROUNDS = "tests/conformance/test_methods_and_codecs.py"


@dataclass(frozen=True)
class Mutant:
    file: str  # below src/capfl
    old: str  # stands there once
    new: str
    tests: str


MUTANTS = {
    "fedex-lora averages factors and no more": Mutant(
        "methods/fedex_lora.py", "algebra.add(version, mean.value() | missed)", "algebra.add(version, mean.value())",
        AGGREGATION,
    ),
    "fedex-lora drops a client's weight": Mutant(
        "methods/fedex_lora.py", "products.add(algebra.subtract(whole, first), weight)",
        "products.add(algebra.subtract(whole, first), 1.0)", AGGREGATION,
    ),
    "fedex-lora swaps A and B": Mutant(
        "methods/fedex_lora.py", ".addmm_(up, down, alpha=-1)", ".addmm_(down.T, up.T, alpha=-1)", AGGREGATION,
    ),
    "a relayed product swaps A and B": Mutant(
        "maths/products.py", "self._sums[name] = (up * weight) @ down", "self._sums[name] = (down.T * weight) @ up.T",
        RELAYS,
    ),
    "flora drops a client's weight": Mutant(
        "methods/flora.py", "products.add(algebra.add(version, change), weight)",
        "products.add(algebra.add(version, change), 1.0)", AGGREGATION,
    ),
    "means drop weights": Mutant("adapter.py", "scaled = t.double() * weight", "scaled = t.double()", AGGREGATION),
    "lora-fair corrects the other way": Mutant(
        "methods/lora_fair.py", "(b + torch.linalg.solve", "(b - torch.linalg.solve", AGGREGATION,
    ),
    "lora-fair corrects what nobody has sent": Mutant(
        "methods/lora_fair.py", "torch.where(sent, corrected, up)", "corrected", AGGREGATION,
    ),
    "what the downlink has yet to carry is lost": Mutant(
        "methods/base.py", "server.told(update.client).adapter, update", "server.told(update.client).whole, update",
        AGGREGATION,
    ),
    "rewriting servers answer by the mask": Mutant(
        "roles/__init__.py", "full_codec(self.codec, self.seed) if self._scaled_again else ", "", ROUNDS,
    ),
    "flexlora drops a client's weight": Mutant(
        "maths/products.py", "w / total * part", "1 / len(parts) * part", AGGREGATION,
    ),
    "fedsa-lora sends B": Mutant(
        "methods/fedsa_lora.py", 'algebra.factor(trained.adapter, "A"), start)',
        'algebra.factor(trained.adapter, "B"), start)', AGGREGATION,
    ),
    "ca-pfl: the prior stands still": Mutant("methods/capfl.py", "PRIOR_STEP = 0.5", "PRIOR_STEP = 0.0", SERVER),
    "ca-pfl: everybody is in one group": Mutant(
        "methods/capfl.py", "for name in {peers.EVERYBODY, own}", "for name in {peers.EVERYBODY}", SERVER,
    ),
    "ca-pfl: kappa sees no features": Mutant(
        "methods/capfl.py", 'settings.kappa == "free" or "z" not in notes', "True", CAPFL,
    ),
    "ca-pfl: newcomers' posteriors see no features": Mutant(
        "methods/capfl.py", "n * float(z @ peers.fourier_of(server, other, omega))", "n * 1.0", SERVER,
    ),
    "ca-pfl: no regulariser": Mutant(
        "methods/capfl.py", "weights = settings.alpha_s / n_train * _gamma", "weights = 0.0 * _gamma", CAPFL,
    ),
    "ca-pfl: dropped ranks are kept": Mutant(
        "methods/capfl.py", "algebra.without(start, ~alive(memory.notes))", "start", CAPFL,
    ),
    "ca-pfl: a peer trains from its own adapter": Mutant(
        "methods/capfl.py", "return memory.adapter if finds_peers and _is_alone(memory) else received",
        "return memory.adapter or received", SERVER,
    ),
}  # fmt: skip


def noticed(mutant: Mutant) -> bool:
    """Do the tests fail with it?

    Raises:
        ValueError: the code that it changes does not stand there once.
    """
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / "capfl" / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.file} has {mutant.old!r} {text.count(mutant.old)} times, not once: put it right")
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        paths = os.pathsep.join(filter(None, (str(source), os.environ.get("PYTHONPATH"))))
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.tests]
        done = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise ValueError(f"{mutant.tests} did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main() -> None:
    missed = False
    for name in sys.argv[1:] or MUTANTS:
        found = noticed(MUTANTS[name])
        missed |= not found
        print("noticed" if found else "MISSED ", name, flush=True)
    raise SystemExit(missed)


if __name__ == "__main__":
    main()

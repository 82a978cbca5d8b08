"""Errors put into the code on purpose, one at a time, and the tests that have to notice each.

    python tests/mutants.py [--all] [WORD ...]

runs those whose name or file has one of the words, or every one. Each is made in a copy of the package, so the code
itself stays as it is. Prints a row for each, and ends with 1 if one was MISSED. With --all, every quick test may
notice it, not only those that are named beside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 900  # seconds that tests may take; what loops for good has been noticed


@dataclass(frozen=True)
class Mutant:
    """``old`` stands once in ``file``, below src/capfl, and becomes ``new``; ``tests``, below tests, should fail."""

    file: str
    old: str
    new: str
    tests: str  # one or more, with spaces between them


MUTANTS = {
    # -- wire: what crosses, to the byte -----------------------------------------------------------
    "unbiased ternary values have the mean magnitude": Mutant(
        "wire/values.py", "        if unbiased:\n", "        if False:\n", "unit/wire/test_codec.py"
    ),
    "ternary zeros are all positive": Mutant(
        "wire/values.py", "(values < 0) | ((values == 0) & (kept % 2 == 1))", "values < 0", "unit/wire/test_codec.py"
    ),
    "levels stand for their lower edges": Mutant(
        "wire/values.py", "low + (level + 0.5) * width", "low + level * width", "unit/wire/test_values.py"
    ),
    "spare bits of signs may be anything": Mutant(
        "wire/values.py", "if bits[len(magnitude) :].any():", "if False:", "unit/wire/test_values.py"
    ),
    "a level may be too large": Mutant(
        "wire/values.py", "if (levels >= 2**width).any():", "if False:", "unit/wire/test_values.py"
    ),
    "Rice codes are longer than they need be": Mutant(
        "wire/rice.py", "min(MAX_K, max(0, 1 + math.floor(", "min(MAX_K, max(0, 2 + math.floor(",
        "unit/wire/test_rice.py",
    ),
    "spare bits of numbers may be anything": Mutant(
        "wire/rice.py", "if spare and data[-1] & (2**spare - 1):", "if False:", "unit/wire/test_rice.py"
    ),
    "a position may lie in the next tensor": Mutant(
        "wire/positions.py", "if len(within) and (within >= sizes[owner]).any():", "if False:",
        "unit/wire/test_positions.py",
    ),
    "the mask stands still": Mutant(
        "wire/select.py", "np.uint32(round_ * width % _CIRCLE)", "np.uint32(0)", "unit/wire/test_select.py"
    ),
    "the mask of a part is drawn for that part": Mutant(
        "wire/select.py", "starts = dict(zip((name for name, _ in whole.shapes), whole.starts, strict=True))",
        "starts = dict(zip((name for name, _ in layout.shapes), layout.starts, strict=True))",
        "unit/wire/test_select.py",
    ),
    "windows over the ranks stand still": Mutant(
        "wire/select.py", "(round_ * _GOLDEN % _CIRCLE) * sizes >> 32", "0 * sizes",
        "unit/wire/test_importance.py unit/wire/test_select.py",
    ),
    "tensors' budgets do not sum to the whole": Mutant(
        "wire/select.py", '[:missing]] += 1', '[:missing]] += 0', "unit/wire/test_select.py"
    ),
    "unbiased codecs do not scale what is left": Mutant(
        "wire/codec.py", "if self.unbiased and np.count_nonzero(flat) > np.count_nonzero(flat[kept]):", "if False:",
        "unit/wire/test_codec.py",
    ),
    "the residual is not sent": Mutant(
        "wire/feedback.py", "t + residual[name] if name in residual else t", "t", "unit/wire/test_feedback.py"
    ),
    "the residual forgets what waited before": Mutant(
        "wire/feedback.py", "algebra.subtract(whole, codec.decode", "algebra.subtract(change, codec.decode",
        "unit/wire/test_feedback.py",
    ),
    "checksums are not checked": Mutant(
        "wire/header.py", "if _CRC.unpack_from(blob, len(blob) - _CRC.size)[0] != zlib.crc32(", "if 0 and zlib.crc32(",
        "unit/wire/test_message.py",
    ),
    "messages for other adapters are taken": Mutant(
        "wire/header.py", "if hashed != schema:", "if False:", "unit/wire/test_message.py"
    ),
    "the schema knows no shapes": Mutant(
        "wire/header.py", '{name} {tuple(t.shape)}', '{name}', "unit/wire/test_message.py"
    ),
    "the ledger takes positions for values": Mutant(
        "wire/sections.py", 'Section.POSITIONS: "positions",', 'Section.POSITIONS: "values",',
        "unit/wire/test_sections.py unit/wire/test_message.py",
    ),
    "values that are not finite come in": Mutant(
        "wire/body.py", "if not np.isfinite(decoded).all():", "if False:",
        "unit/wire/test_codec.py unit/wire/test_message.py",
    ),
    "a body of any length is read": Mutant(
        "wire/body.py", "if len(body) > largest:", "if False:", "unit/wire/test_codec.py unit/wire/test_message.py"
    ),
    "a faint rank has no importance at all": Mutant(
        "wire/ranks.py", "np.maximum(codes, 1)", "codes", "unit/wire/test_ranks.py unit/wire/test_importance.py"
    ),
    "a scale may be infinite": Mutant(
        "wire/scales.py", "(codes < 0).any() or (codes > self._largest).any()", "(codes < 0).any()",
        "unit/wire/test_values.py unit/wire/test_ranks.py",
    ),
    "B is written as A is": Mutant(
        "wire/layout.py", 'return int(name.endswith(".B"))', "return 0",
        "unit/wire/test_layout.py",
    ),
    # -- maths -------------------------------------------------------------------------------------
    "KL has its rates the wrong way round": Mutant(
        "maths/gamma.py", "a * (b0 / b - 1)", "a * (b / b0 - 1)", "unit/maths/test_gamma.py"
    ),
    "E[1/kappa] is 1/E[kappa]": Mutant(
        "maths/gamma.py", "self.beta / (self.alpha - 1)", "self.beta / self.alpha", "unit/maths/test_gamma.py"
    ),
    "the barycentre drops weights": Mutant(
        "maths/gamma.py", "sums = sums + weight * torch.stack", "sums = sums + torch.stack",
        "unit/maths/test_gamma.py",
    ),
    "the prior moves by the other share": Mutant(
        "maths/gamma.py", "((a ** (1 - share)) * b**share", "((a**share) * b ** (1 - share)", "unit/maths/test_gamma.py"
    ),
    "the kernel has no width": Mutant(
        "maths/fourier.py", "@ omega.T / frame.sigma", "@ omega.T", "unit/maths/test_fourier.py"
    ),
    "features are centred and not scaled": Mutant(
        "maths/fourier.py", "- frame.centre) / frame.spread @", "- frame.centre) @", "unit/maths/test_fourier.py"
    ),
    "distances of peers keep the bias of small samples": Mutant(
        "maths/peers.py", " - (1 / items[:, None] + 1 / items[None, :])", "", "unit/maths/test_peers.py"
    ),
    "agreement keeps the noise that a client shares with itself": Mutant(
        "maths/peers.py", "np.diag(products) - (1 - 1 / answers) / np.maximum(items - 1, 1)", "np.diag(products)",
        "unit/maths/test_peers.py",
    ),
    "one near peer is enough to join a group": Mutant(
        "maths/peers.py", '"average"', '"single"', "unit/maths/test_peers.py"
    ),
    "products drop weights": Mutant(
        "maths/products.py", "w / total * part", "1 / len(parts) * part", "unit/test_aggregation.py"
    ),
    "a mean product swaps A and B": Mutant(
        "maths/products.py", "self._sums[name] = (up * weight) @ down",
        "self._sums[name] = (down.T * weight) @ up.T", "unit/test_aggregation.py",
    ),
    "huber has one delta": Mutant("maths/huber.py", "beta=delta", "beta=1.0", "unit/maths/test_huber.py"),
    "the modulator moves alpha, not alpha - 1": Mutant(
        "maths/modulator.py", "1 + (prior.alpha - 1) * v_alpha.exp()", "prior.alpha * v_alpha.exp()",
        "unit/maths/test_modulator.py",
    ),
    "the modulator sees no features": Mutant(
        "maths/modulator.py", "@ z.double())", "@ torch.ones_like(z).double())", "unit/maths/test_modulator.py"
    ),
    "the modulator never settles": Mutant(
        "maths/modulator.py", "rate * (1 - step / steps)", "rate", "unit/maths/test_modulator.py"
    ),
    "the smallest remainders are rounded up": Mutant(
        "maths/budget.py", "np.argsort(-remainders", "np.argsort(remainders", "unit/maths/test_budget.py"
    ),
    "no rank may be left": Mutant(
        "maths/budget.py", "    alive[weights.argmax()] = True\n", "", "unit/maths/test_budget.py"
    ),
    "epsilon is of another number of rounds": Mutant(
        "maths/privacy.py", "GaussianDpEvent(noise_multiplier), rounds)", "GaussianDpEvent(noise_multiplier), 1)",
        "unit/test_private.py",
    ),
    # -- data --------------------------------------------------------------------------------------
    "items of one group go to others, too": Mutant(
        "data/partition.py", "pool = generator.permutation(np.flatnonzero(value == v))",
        "pool = generator.permutation(np.flatnonzero(value >= v))", "unit/data/test_partition.py",
    ),
    "dirichlet's concentration is always 1": Mutant(
        "data/partition.py", "np.full(n_clients, alpha)", "np.full(n_clients, 1.0)", "unit/data/test_partition.py"
    ),
    "the first clients get what rounding leaves": Mutant(
        "data/partition.py", 'sizes[np.argsort(sizes - exact, kind="stable")[:rest]] += 1', "sizes[:rest] += 1",
        "unit/data/test_partition.py",
    ),
    "two clients' names differ in case only": Mutant(
        "data/partition.py", "taken.isdisjoint(name.casefold() for name in ids)", "taken.isdisjoint(ids)",
        "unit/data/test_partition.py",
    ),
    "copies of a test item are trained on": Mutant(
        "data/split.py", "groups.setdefault(content, []).append(k)", "groups[k] = [k]", "unit/data/test_split.py"
    ),
    "all clients' items are shuffled alike": Mutant(
        "data/split.py", 'stream(seed, "split", client)', 'stream(seed, "split")', "unit/data/test_split.py"
    ),
    "an answer that may mean two options is taken": Mutant(
        "data/formats.py", "if len(found) > 1:", "if False:", "unit/data/test_formats.py"
    ),
    "given labels are sorted": Mutant(
        "data/formats.py", "tuple(given) or in_order(counts)", "in_order(counts)", "unit/data/test_formats.py"
    ),
    "lines that are no JSON are left out": Mutant(
        "data/rows.py", 'faults.append(f"{row.where}: {row.fault}")', "pass", "unit/data/test_formats.py"
    ),
    "all clusters keep their labels": Mutant(
        "data/codebooks.py", "cluster = number % CLUSTERS", "cluster = 0", "unit/data/test_codebooks.py"
    ),
    "more options than letters are taken": Mutant(
        "data/load.py", "refuse_too_many(place, items)", "pass", "unit/data/test_load_items.py"
    ),
    "one label has two letters": Mutant(
        "data/load.py", "refuse_conflicts(labelled)", "pass", "unit/data/test_load_items.py"
    ),
    "batches are of any length": Mutant(
        "data/batches.py", '= mega[np.argsort(size[mega], kind="stable")]', "= mega", "unit/data/test_batches.py"
    ),
    # -- model -------------------------------------------------------------------------------------
    "a long prompt loses its end": Mutant(
        "model/tokens.py", "head[-room:]", "head[:room]", "unit/model/test_tokens.py"
    ),
    "the model does not learn to stop": Mutant(
        "model/tokens.py", "return answer if answer and answer[-1] == eos else [*answer, int(eos)]", "return answer",
        "unit/model/test_tokens.py",
    ),
    "two letters may have one token": Mutant(
        "model/tokens.py", "len(heads) != 1 or len(set(letters)) != len(letters)", "len(heads) != 1",
        "unit/model/test_tokens.py",
    ),
    "gradients are not clipped": Mutant(
        "model/train.py", "torch.nn.utils.clip_grad_norm_(live.values(), config.max_grad_norm)", "pass",
        "unit/model/test_train.py",
    ),
    "the penalty is not in the loss": Mutant(
        "model/train.py", "whole = loss + penalty.term(dict(live), constants) if penalty else loss", "whole = loss",
        "unit/model/test_train.py",
    ),
    "weights do not decay": Mutant(
        "model/train.py", "weight_decay=config.weight_decay", "weight_decay=0.0", "unit/model/test_train.py"
    ),
    "sensitivities do not cancel": Mutant(
        "model/train.py", "(factor.detach() * factor.grad).sum(axis)",
        "(factor.detach() * factor.grad).abs().sum(axis)", "unit/model/test_train.py",
    ),
    "the cosine schedule rises": Mutant(
        "model/train.py", "(1 - math.cos(math.pi * left)) / 2", "(1 + math.cos(math.pi * left)) / 2",
        "unit/model/test_train.py",
    ),
    "long options are unlikely": Mutant(
        "model/score.py", "sums[i] / n_tokens[i]", "sums[i]", "unit/model/test_score.py"
    ),
    "the loss of letters is over the whole vocabulary": Mutant(
        "model/score.py", "torch.log_softmax(letters, -1)[data.examples[i].right]",
        "torch.log_softmax(logits[b], -1)[data.examples[i].letters[data.examples[i].right]]",
        "unit/model/test_score.py",
    ),
    "the cache has no limit": Mutant(
        "model/hidden.py", "if self.used_bytes + n_bytes > self.limit_bytes:", "if False:", "unit/model/test_hidden.py"
    ),
    "another model's hidden states are used": Mutant(
        "model/shared.py", "content = self._fingerprint(model) +", "content =", "unit/model/test_hidden.py"
    ),
    "a description sees the answer": Mutant(
        "model/features.py", "len(row.ids) - len(row.targets) + 1", "len(row.ids)", "unit/model/test_features.py"
    ),
    "states are bound without their mean taken off": Mutant(
        "model/features.py", "centred = states - states.mean(0)", "centred = states", "unit/model/test_features.py"
    ),
    "an adapter of fewer ranks is scaled up": Mutant(
        "model/export.py", "config.lora_alpha * rank / config.r for", "config.lora_alpha for", "unit/test_export.py"
    ),
    "rsLoRA is read as LoRA": Mutant(
        "model/export.py", "math.sqrt(rank) if config.use_rslora else rank", "rank", "unit/test_export.py"
    ),
    "dropout stays on in scoring": Mutant(
        "model/train.py", "model.train(False)", "model.train(True)", "unit/model/test_train.py"
    ),
    # -- adapters, streams, disk, config -----------------------------------------------------------
    "means drop weights": Mutant("adapter.py", "scaled = t.double() * weight", "scaled = t.double()",
        "unit/test_adapter.py"),
    "a pruned rank that does something is lost": Mutant(
        "adapter.py", "used = down.any(1) & up.any(0)", "used = down.all(1) & up.all(0)", "unit/test_adapter.py"
    ),
    "1 and '1' are one stream": Mutant("rng.py", "map(repr, keys)", "map(str, keys)", "unit/test_rng.py"),
    "torch's generator stays seeded": Mutant(
        "rng.py", "with torch.random.fork_rng():", "if True:", "unit/test_rng.py"
    ),
    "all files have one nonce": Mutant(
        "vault.py", "nonce = os.urandom(_NONCE)", "nonce = bytes(_NONCE)", "unit/test_vault.py"
    ),
    "a file in clear is taken for an encrypted run's": Mutant(
        "vault.py", "        if not blob.startswith(MAGIC):\n", "        if not blob.startswith(MAGIC):\n"
        "            return blob\n        if False:\n", "unit/test_vault.py",
    ),
    "a key may lie beside what it locks": Mutant(
        "vault.py", "if path.resolve().is_relative_to(out.resolve()):", "if False:", "unit/test_vault.py"
    ),
    "a crash leaves half a file": Mutant(
        "files.py", "os.replace(work, path)", "path.write_bytes(data)", "unit/test_checkpoint.py"
    ),
    "an unknown key is ignored": Mutant(
        "config/schema.py", 'extra="forbid"', 'extra="ignore"', "unit/test_config.py"
    ),
    "the last, smaller batch makes no step": Mutant(
        "config/schema.py", "math.ceil(n_items / self.batch_size)", "n_items // self.batch_size",
        "unit/test_config.py",
    ),
    "a flag may mean two keys": Mutant(
        "config/keys.py", "by_leaf.items() if len(found) == 1}", "by_leaf.items()}",
        "unit/test_config.py",
    ),
    "own files are pooled": Mutant(
        "config/schema.py", '"kind" not in self.partition.model_fields_set', "False", "unit/data/test_load_items.py"
    ),
    "a client's bytes a round are over all rounds": Mutant(
        "report/ledger.py", "n_rounds = len({e.round for e in own})", "n_rounds = self.rounds", "unit/test_bytes.py"
    ),
    "a ledger that does not add up is shown": Mutant(
        "report/ledger.py", "if any(said[d] != counted[d] for d in DIRECTIONS):", "if False:", "unit/test_bytes.py"
    ),
    "the weighted mean drops weights": Mutant(
        "report/summary.py", "statistics.fmean(values, weights)", "statistics.fmean(values)", "test_report.py"
    ),
    "a bootstrap draws seeds alone": Mutant(
        "compare/statistics.py", "values[clients].mean(axis=1)", "values.mean()", "unit/test_compare_statistics.py"
    ),
    "any loss against local-only is a clear one": Mutant(
        "compare/statistics.py", "return alone - mine > Z95 * error", "return alone > mine",
        "unit/test_compare_statistics.py",
    ),
    "a plan knows of no missed rounds": Mutant(
        "plan/traffic.py", "round - 1, version[client])", "round - 1, round - 2)", "unit/test_plan.py"
    ),
    "a plan relays one update a round": Mutant(
        "plan/traffic.py", "visits * n + (HEAD", "n + (HEAD", "unit/test_plan.py"
    ),
    "a plan leaves no memory to spare": Mutant(
        "plan/memory.py", "fits=ABOVE * needed <= room", "fits=needed <= room", "unit/test_plan.py"
    ),
}  # fmt: skip


def faulty(mutant: Mutant) -> str:
    """The text of a mutant's file with its error in it.

    Raises:
        ValueError: the text that it changes does not stand there once.
    """
    path = ROOT / "src" / "capfl" / mutant.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {mutant.old!r} {text.count(mutant.old)} times, not once")
    return text.replace(mutant.old, mutant.new)


def noticed(source: Path, tests: list[str]) -> bool:
    """Do the tests fail with the package in ``source``? Raises ValueError: they do not run."""
    paths = os.pathsep.join(filter(None, (str(source), os.environ.get("PYTHONPATH"))))
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    with tempfile.TemporaryDirectory() as own:  # failing examples of hypothesis are not remembered
        settings["HYPOTHESIS_STORAGE_DIRECTORY"] = own
        try:
            done = subprocess.run(
                words, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=LONGEST
            )
        except subprocess.TimeoutExpired:
            return True
    if done.returncode not in (0, 1):
        raise ValueError(f"{' '.join(tests)} did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--all"]
    chosen = {n: m for n, m in MUTANTS.items() if not words or any(w in f"{n} {m.file}" for w in words)}
    tests = {
        n: ["tests"] if "--all" in sys.argv else [f"tests/{t}" for t in m.tests.split()] for n, m in chosen.items()
    }
    if noticed(ROOT / "src", sorted({test for named in tests.values() for test in named})):
        raise SystemExit("tests fail without any error in the code: mend that first")
    missed = []
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        for name, mutant in chosen.items():
            path, began = source / "capfl" / mutant.file, time.monotonic()
            sound = path.read_bytes()
            path.write_text(faulty(mutant), encoding="utf-8")
            found = noticed(source, tests[name])
            path.write_bytes(sound)
            print(f"{'noticed' if found else 'MISSED '} {time.monotonic() - began:4.0f} s  {name}", flush=True)
            missed += [] if found else [name]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} noticed")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()

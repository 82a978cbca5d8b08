"""Twelve small runs, and what each of them comes to, to the bit.

    python tests/parity/digests.py OUT.json [NAME ...]

runs them through the command line of whatever ``capfl`` can be imported, and writes what they came to. See README.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

# What has a bearing on the bits is given, as far as there still is a key, so that a new default changes nothing here.
SETTINGS = {
    "seed": "0", "model.path": "tiny", "model.dtype": "float32", "model.device": "cpu",
    "lora.rank": "8", "lora.alpha": "16", "lora.targets": "q_proj,v_proj", "lora.layers": "all",
    "data.sets": "helpdesk", "data.sites": "4", "data.items": "48", "data.conflict": "0.5", "data.scoring": "letter",
    "partition.kind": "by:site", "partition.validation": "0.1", "partition.test": "0.2",
    "federation.rounds": "3", "federation.fraction": "1", "evaluation.every": "1", "evaluation.references": "local",
    "train.epochs": "1", "train.batch_size": "8", "train.learning_rate": "2e-3", "train.schedule": "constant",
    "train.max_grad_norm": "1", "runtime.threads": "1", "runtime.cache": "memory",
}  # fmt: skip
CAPFL = {
    "method.alpha_s": "1e-4", "method.alpha_p": "1e-5", "method.rff_output_dim": "256", "method.mlp_hidden_dim": "16",
    "method.rank_floor": "0.5", "method.peers": "0.03",
}  # fmt: skip
METHODS = {"fedit": {}, "local": {}, "fedsa-lora": {}, "rolora": {}, "fedex-lora": {}, "ca-pfl": CAPFL}
CODECS = {
    "ternary": {"codec.values": "ternary", "codec.mask": "random", "codec.density": "0.3333333333333333"},
    "feedback": {"codec.values": "8bit", "codec.mask": "top", "codec.density": "0.25"},
}
RUNS = {
    f"{method} {codec}": SETTINGS | extra | CODECS[codec] | {"method.name": method}
    for method, extra in METHODS.items()
    for codec in CODECS
}
# Here clients part into two groups of peers; with the data of the other runs they are one group.
RUNS["ca-pfl ternary"] |= {"partition.kind": "conflict", "partition.clients": "4"}


def digests(name: str, folder: Path) -> dict[str, Any]:
    """Make a run in a new folder. Returns digests of its adapters, by place, and the numbers of its rounds.

    Raises:
        RuntimeError: the run failed; with what it said.
    """
    from capfl.cli import app

    settings = RUNS[name] | {"out": str(folder)}
    words = ["run", *(word for key, value in settings.items() for word in (f"--{key}", value))]
    result = CliRunner().invoke(app, words)
    if result.exit_code:
        raise RuntimeError(f"capfl {' '.join(words)}\n{result.output}") from result.exception
    adapters = sorted(path.parent for path in (folder / "adapters").rglob("adapter_model.safetensors"))
    return {
        "adapters": {str(path.relative_to(folder)): _digest(path / "adapter_model.safetensors") for path in adapters},
        "rounds": _rounds(folder / "rounds.jsonl"),
        "alone": [own["losses"] for own in _rounds(folder / "references" / "local" / "rounds.jsonl")],
    }


def _digest(path: Path) -> str:
    """Of a file's tensors: names, types, shapes and bytes, in the order of names."""
    made = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        made.update(tensor.contiguous().numpy().tobytes())
    return made.hexdigest()


def _rounds(path: Path) -> list[dict[str, Any]]:
    """Losses and norms by client, and the validation, of every round; none of a run that was not made."""
    kept = ("losses", "norms", "validation_accuracy", "validation_loss")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = [json.loads(line) for line in lines]
    for record in records:
        record.setdefault("validation_accuracy", record.get("validation", {}).get("accuracy"))  # as 0.1.0 had it
    return [{key: record.get(key) for key in kept} for record in records]


def arithmetic() -> str:
    """Digest of a fixed computation. Where it is another, so may be the last bits of any run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = hashlib.sha256()
        for rows, inner, columns in ((1, 64, 8), (8, 64, 64), (250, 64, 176), (37, 1000, 13)):
            x, w = _fixed(rows, inner).requires_grad_(), _fixed(inner, columns).requires_grad_()
            hidden = torch.nn.functional.silu(x @ w)
            scaled = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
            loss = torch.logsumexp(scaled, -1).mean() + torch.softmax(scaled, -1).pow(2).sum() + torch.erf(scaled).sum()
            loss.backward()
            for tensor in (loss.detach(), x.grad, w.grad, torch.cos(x.detach()), torch.exp(w.detach())):
                assert tensor is not None
                made.update(tensor.numpy().tobytes())
        square = _fixed(40, 40).double() + torch.eye(40, dtype=torch.float64)
        made.update(torch.linalg.solve(square, square.T).numpy().tobytes())
        made.update(torch.randn(50, generator=torch.Generator().manual_seed(0)).numpy().tobytes())
        return made.hexdigest()
    finally:
        torch.set_num_threads(threads)


def _fixed(rows: int, columns: int) -> torch.Tensor:
    """A float32 matrix of exact fractions in [-0.5, 0.5)."""
    numbers = torch.arange(rows * columns, dtype=torch.int64) * 7919 % 1024
    return (numbers.float() / 1024 - 0.5).reshape(rows, columns)


def main() -> None:
    out, names = Path(sys.argv[1]), sys.argv[2:] or list(RUNS)
    runs = {}
    for name in names:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as place:
            runs[name] = digests(name, Path(place) / "run")
        print(f"{name}: {time.process_time() - began:.1f} s of CPU time", flush=True)
    text = json.dumps({"arithmetic": arithmetic(), "torch": torch.__version__, "runs": runs}, indent=1)
    out.write_text(text + "\n", encoding="utf-8")
    print(f"{time.process_time():.1f} s of CPU time in all")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()

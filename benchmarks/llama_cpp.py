"""Does llama.cpp compute with an exported GGUF file what capfl computes with the adapter?

    pip install xllamacpp
    python benchmarks/llama_cpp.py [--json FILE]

SmolLM2-135M, whose package is a GGUF file, in float32 on both sides, and a random adapter of unequal ranks (1, 2, 4 and
8) in all linear layers. For some prompts: the largest difference between the log-probabilities that transformers and
llama.cpp give the 200 likeliest next tokens, with the adapter and without, and whether both write the same tokens.
Without llama.cpp's order of q's and k's rows, as a check that the comparison can fail, it has to be far larger.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import xllamacpp

from capfl import adapter as algebra
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.model import gguf_file
from capfl.model.base import load_base
from capfl.model.export import save_adapter
from capfl.model.generate import generate
from capfl.model.lora import AdaptedModel
from capfl.model.place import smollm2_weights
from capfl.types import Adapter

PROMPTS = ("The capital of France is", "Once upon a time there was a", "def add(a, b):\n    return")
RANKS = (8, 4, 1, 2)
NEW = 16


def whole_base(out: Path) -> None:
    """The package's model in float32, as capfl computes with it."""
    reader, writer = gguf.GGUFReader(smollm2_weights()), gguf.GGUFWriter(out, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        value = 0 if key == "general.file_type" else field.contents()  # 0: all in float32
        writer.add_key_value(key, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for t in reader.tensors:
        writer.add_tensor(t.name, gguf.dequantize(t.data, t.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_adapter(model: AdaptedModel) -> Adapter:
    """Of unequal ranks, large enough to change what the model writes."""
    generator, adapter = torch.Generator().manual_seed(0), {}
    for number, (name, p) in enumerate(model.parameters.items()):
        rank = RANKS[number // 2 % len(RANKS)]
        values = torch.randn(p.shape, generator=generator)
        adapter[name] = 0.05 * values[:rank] if name.endswith(".A") else 0.02 * values[:, :rank]
    return adapter


@torch.no_grad()
def ours(model: AdaptedModel, adapter: Adapter) -> dict[str, Any]:
    found = {}
    for prompt in PROMPTS:
        ids = np.asarray(model.base.tokenizer(prompt)["input_ids"], np.int32)
        tokens = generate(model, adapter, [ids], max_new_tokens=NEW)[0]
        logits = model.logits(torch.from_numpy(ids[None]).long(), torch.tensor([len(ids) - 1]))[0]
        found[prompt] = {
            "text": model.base.tokenizer.decode(tokens),
            "logp": logits.log_softmax(-1).numpy(),
            "ids": ids,
        }
    return found


def theirs(base: Path, lora: Path | None, expected: dict[str, Any]) -> dict[str, Any]:
    """Of every prompt: the largest difference from ``expected``, and whether the text is the same."""
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = str(base), 512, 1, False
    settings.cpuparams.n_threads = torch.get_num_threads()
    if lora:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = str(lora), 1.0
        settings.lora_adapters = [adapter]
    server = xllamacpp.Server(settings)
    found = {}
    for prompt, own in expected.items():
        asked = {
            "prompt": own["ids"].tolist(),
            "max_tokens": NEW,
            "temperature": 0,
            "logprobs": 200,
            "cache_prompt": False,
        }
        answer = server.handle_completions(asked)
        choice = (json.loads(answer) if isinstance(answer, str) else answer)["choices"][0]
        likeliest = choice["logprobs"]["content"][0]["top_logprobs"]
        apart = max(abs(one["logprob"] - float(own["logp"][one["id"]])) for one in likeliest)
        found[prompt] = {"largest_difference": round(apart, 4), "same_text": choice["text"] == own["text"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = AdaptedModel(load_base(ModelConfig(path="smollm2", device="cpu")), LoraConfig(layers="all"))
    adapter = random_adapter(model)
    zero = model.initial_adapter(0)
    base, adapted = ours(model, zero), ours(model, algebra.padded(adapter, zero))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        whole_base(place / "base.gguf")
        save_adapter(adapter, model.peft_config(), place / "adapter")
        gguf_file.save_gguf(place / "adapter", ModelConfig(), place / "adapter.gguf")
        gguf_file.KINDS["llama"] = gguf_file.Kind(gguf.MODEL_ARCH.LLAMA)
        gguf_file.save_gguf(place / "adapter", ModelConfig(), place / "plain.gguf")
        result = {
            "xllamacpp": xllamacpp.__version__,
            "adapter_changes_text": [adapted[prompt]["text"] != base[prompt]["text"] for prompt in PROMPTS],
            "base": theirs(place / "base.gguf", None, base),
            "adapter": theirs(place / "base.gguf", place / "adapter.gguf", adapted),
            "adapter_without_reordering": theirs(place / "base.gguf", place / "plain.gguf", adapted),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""What to say of a name that there is not: the nearest ones, and what it is called here where others call it so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

FLAGS: Mapping[str, str] = {  # of PEFT, TRL, transformers and Flower -> the flag here
    "lr": "learning_rate",
    "bs": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "local_epochs": "epochs",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "local_steps": "steps",
    "max_steps": "steps",
    "gradient_accumulation_steps": "accumulate",
    "gradient_checkpointing": "checkpointing",
    "lr_scheduler_type": "schedule",
    "scheduler": "schedule",
    "max_length_tokens": "max_length",
    "max_seq_len": "max_length",
    "max_seq_length": "max_length",
    "r": "lora_rank",
    "lora_r": "lora_rank",
    "target_modules": "targets",
    "layers_to_transform": "layers",
    "base_model": "model",
    "model_id": "model",
    "model_name": "model",
    "model_name_or_path": "model",
    "pretrained_model_name_or_path": "model",
    "torch_dtype": "dtype",
    "precision": "dtype",
    "load_in_4bit": "quantization",
    "load_in_8bit": "quantization",
    "dataset": "data",
    "dataset_name": "data",
    "train_file": "data",
    "data_path": "data",
    "dataset_split": "split",
    "algorithm": "method",
    "aggregation": "method",
    "strategy": "method",
    "num_rounds": "rounds",
    "num_server_rounds": "rounds",
    "communication_rounds": "rounds",
    "n_clients": "partition.clients",
    "fraction_fit": "fraction",
    "fraction_train": "fraction",
    "sample_fraction": "fraction",
    "proximal_mu": "alpha_f",
    "mu": "alpha_f",
    "dirichlet_alpha": "partition.alpha",
    "clipping_norm": "clip",
    "target_epsilon": "noise_multiplier",
    "compression": "codec",
    "sparsity": "density",
    "early_stopping_patience": "patience",
    "random_seed": "seed",
    "output": "out",
    "output_dir": "out",
    "run_dir": "out",
    "num_threads": "threads",
    "num_workers": "threads",
    "report_to": "tracker",
}

METHODS: Mapping[str, str] = {  # -> the method here, and what has to be given beside it
    "capfl": "ca-pfl",
    "fedavg": "fedit",
    "fedlora": "fedit",
    "fed-it": "fedit",
    "fedprox": "fedit --alpha-f 0.1",
    "fedex": "fedex-lora",
    "lorafair": "lora-fair",
    "flex-lora": "flexlora",
    "hetlora": "flexlora",
    "ffa": "ffa-lora",
    "fedsa": "fedsa-lora",
    "alone": "local",
    "standalone": "local",
    "single": "local",
    "central": "centralised",
    "centralized": "centralised",
    "pooled": "centralised",
}


def plain(name: str) -> str:
    """A name without what people write differently: capitals, and _ for -."""
    return name.lower().replace("_", "-")


def nearest(wrong: str, right: Iterable[str], most: int = 3) -> list[str]:
    """The names that ``wrong`` may be a slip of the pen for, the likeliest first."""
    by_plain = {plain(name): name for name in right}
    return [by_plain[name] for name in get_close_matches(plain(wrong), list(by_plain), n=most)]


def did_you_mean(names: Iterable[str]) -> str:
    """``; did you mean A or B?``, or nothing."""
    found = list(names)
    return f"; did you mean {' or '.join(found)}?" if found else ""

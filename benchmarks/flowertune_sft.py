"""What a client of FlowerTune and one of NVIDIA FLARE train with: TRL's SFTTrainer and PEFT. For ``flowertune.py``."""

from __future__ import annotations

from functools import cache
from typing import Any

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer

from capfl.model.layers import adapted_layers
from flowertune_job import Job, base_of, tokenizer_of


def adapted(job: Job) -> Any:
    """The base with LoRA on the layers that capfl adapts."""
    base, lora = base_of(job.model), job.lora()
    config = LoraConfig(r=lora.rank, lora_alpha=int(lora.alpha), target_modules=list(adapted_layers(base, lora)),
                        task_type="CAUSAL_LM")  # fmt: skip
    return get_peft_model(base, config)  # type: ignore[arg-type]


@cache
def datasets(job: Job) -> list[Dataset]:
    """The rows of each client with the tokens that the loss is of, in the form that TRL takes."""
    made = []
    for examples in job.examples("train").values():
        rows = {"input_ids": list[list[int]](), "completion_mask": list[list[int]]()}
        for example in examples:
            ids, answer = list(map(int, example.train.ids)), list(map(int, example.train.targets))
            rows["input_ids"].append([*ids, answer[-1]])
            rows["completion_mask"].append([0] * (len(ids) + 1 - len(answer)) + [1] * len(answer))
        made.append(Dataset.from_dict(rows))
    return made


def trainer_of(job: Job, model: Any, number: int, seed: int, checkpointing: bool, work: str) -> SFTTrainer:
    """A trainer of client ``number`` for the steps of a round, whose files go into the folder ``work``."""
    settings = SFTConfig(
        output_dir=work, per_device_train_batch_size=job.batch_size, max_steps=job.steps,
        learning_rate=job.learning_rate, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
        optim="adamw_torch", gradient_checkpointing=checkpointing, max_length=None, bf16=False, seed=seed,
        report_to=[], save_strategy="no", logging_steps=10, disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    tokenizer = tokenizer_of(job.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return SFTTrainer(model, args=settings, train_dataset=datasets(job)[number], processing_class=tokenizer)

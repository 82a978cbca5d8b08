"""Federated LoRA as FlowerTune does it, Flower's template for language models: for ``flowertune.py``.

As in the template, every message of the server makes its client load the base, inject LoRA with PEFT, copy the server's
values into it, and train with TRL's SFTTrainer, with gradient checkpointing unless a job leaves it out. The server
averages dense adapters with FedAvg. Clients are run by Flower's simulation engine, in actors of Ray.

Kinder than the template: rows are tokenised once in a process, and the server frees its own model.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from datasets import Dataset
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from trl import SFTConfig, SFTTrainer

from capfl.model.layers import adapted_layers
from flowertune_job import Job, base_of, to_peft, tokenizer_of

client_app = ClientApp()


@client_app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """A client's part of a round: the adapter that it was sent, trained on its own rows."""
    before, given = time.process_time(), message.content["config"]
    job, number = Job(**json.loads(given["job"])), int(context.node_config["partition-id"])
    torch.set_num_threads(job.threads)
    model = adapted(job)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    data = datasets(job)[number]
    with tempfile.TemporaryDirectory() as work:
        settings = SFTConfig(
            output_dir=work, per_device_train_batch_size=job.batch_size, max_steps=job.steps,
            learning_rate=job.learning_rate, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
            optim="adamw_torch", gradient_checkpointing=bool(given["checkpointing"]), max_length=None, bf16=False,
            seed=1000 * int(given["server-round"]) + number, report_to=[], save_strategy="no", logging_steps=10,
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        tokenizer = tokenizer_of(job.model)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        done = SFTTrainer(model, args=settings, train_dataset=data, processing_class=tokenizer).train()
    print(f"client {number}: {time.process_time() - before:.1f} s of the processor", flush=True)
    said = MetricRecord({"train_loss": float(done.training_loss), "num-examples": len(data)})
    reply = RecordDict({"arrays": ArrayRecord(get_peft_model_state_dict(model)), "metrics": said})
    return Message(content=reply, reply_to=message)


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


class Watched(FedAvg):
    """FedAvg that notes when rounds begin and end, and how many bytes of arrays go each way."""

    def __init__(self, cpu: Callable[[], float], clients: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.cpu, self.rounds = cpu, list[dict[str, float]]()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        now = {"began": time.time(), "cpu_before": self.cpu()}
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.rounds.append(now | {"down": sum(_bytes(m) for m in messages) / len(messages)})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        if failed := [m.error.reason for m in replies if m.has_error()]:
            raise RuntimeError(f"{len(failed)} of {len(replies)} clients failed, the first with: {failed[0]}")
        found, said = super().aggregate_train(server_round, replies)
        assert said is not None
        self.rounds[-1] |= {
            "ended": time.time(), "cpu_after": self.cpu(), "loss": float(said["train_loss"]),  # type: ignore[arg-type]
            "up": sum(_bytes(m) for m in replies) / len(replies),
        }  # fmt: skip
        print(self.rounds[-1], flush=True)
        return found, said


def _bytes(message: Message) -> int:
    return sum(arrays.count_bytes() for arrays in message.content.array_records.values())


def simulate(
    job: Job, checkpointing: bool, workers: int, cpu: Callable[[], float]
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """All rounds of a job, and the server's adapter after them, under PEFT's names.

    Args:
        workers: clients that are trained at the same time, each in an actor of Ray.
        cpu: seconds of the processor so far, of this process and all below it.
    """
    server_app, strategy = ServerApp(), Watched(cpu, job.clients)
    final: dict[str, torch.Tensor] = {}

    @server_app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        start = ArrayRecord(to_peft(job.start(base_of(job.model))))
        config = ConfigRecord({"job": json.dumps(dataclasses.asdict(job)), "checkpointing": checkpointing})
        done = strategy.start(grid, start, num_rounds=job.rounds, timeout=7200, train_config=config)
        final.update(done.arrays.to_torch_state_dict())

    settings = {
        "init_args": {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 2**28},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(server_app, client_app, job.clients, backend_config=settings)  # type: ignore[arg-type]
    if not final:
        raise RuntimeError("the server's app ended without an adapter")
    return strategy.rounds, final

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

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from flowertune_job import Job, base_of, to_peft
from flowertune_sft import adapted, datasets, trainer_of

client_app = ClientApp()


@client_app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """A client's part of a round: the adapter that it was sent, trained on its own rows."""
    before, given = time.process_time(), message.content["config"]
    job, number = Job(**json.loads(given["job"])), int(context.node_config["partition-id"])
    torch.set_num_threads(job.threads)
    model = adapted(job)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    seed = 1000 * int(given["server-round"]) + number
    with tempfile.TemporaryDirectory() as work:
        done = trainer_of(job, model, number, seed, bool(given["checkpointing"]), work).train()
    print(f"client {number}: {time.process_time() - before:.1f} s of the processor", flush=True)
    said = MetricRecord({"train_loss": float(done.training_loss), "num-examples": len(datasets(job)[number])})
    reply = RecordDict({"arrays": ArrayRecord(get_peft_model_state_dict(model)), "metrics": said})
    return Message(content=reply, reply_to=message)


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

"""Federated LoRA as NVIDIA FLARE's users run it: for ``flowertune.py``.

As in its published example of TRL and PEFT, ``nvflare.client.hf`` patches an SFTTrainer, ``FedAvgRecipe`` averages
dense adapters as tensors of PyTorch, and the simulator runs all clients at the same time, each with a process of FLARE
and one of this script. A client's script loads the base once in a run and keeps it.

Kinder than the example: no evaluation before each round, no checkpoints (``restore_state=False``, so each round starts
a new AdamW, as it does for the other contestants), and the server keeps the adapter alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_event_type import AppEventType

from flowertune import Cpu
from flowertune_job import Job, base_of, to_peft

NAME = "capfl"  # of the job, and of its folder below the workspace


def client(place: str, number: int) -> None:
    """A client's process: train whenever the server asks for it, and note what came, what goes and the loss."""
    import nvflare.client.hf as flare
    from peft import get_peft_model_state_dict
    from transformers import TrainerCallback

    from flowertune_sft import adapted, trainer_of

    job, path = _job(place), Path(place, f"client-{number}")
    torch.set_num_threads(job.threads)
    model = adapted(job)

    class Note(TrainerCallback):
        """Of a round, before the patched trainer sends its adapter: FLARE may end this process right after that."""

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs is None or "train_loss" not in logs:
                return
            came, goes = flare.receive(), get_peft_model_state_dict(model)
            assert came is not None
            note = {"down": _bytes(came.params), "up": _bytes(goes), "loss": logs["train_loss"]}
            with path.open("a", encoding="utf-8") as notes:
                print(json.dumps(note), file=notes)

    with tempfile.TemporaryDirectory() as work:
        trainer = trainer_of(job, model, number, number, True, work)
        trainer.add_callback(Note())
        flare.patch(trainer, restore_state=False)
        while flare.is_running():
            trainer.train()


def _bytes(arrays: Mapping[str, torch.Tensor]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _job(place: str) -> Job:
    return Job(**json.loads(Path(place, "job.json").read_text(encoding="utf-8")))


class Start(torch.nn.Module):
    """What the server starts from: the values of the adapter, without a base."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        job = _job(self.place)
        return to_peft(job.start(base_of(job.model)))


class Watch(FLComponent):  # type: ignore[misc]
    """Notes in the server's process when rounds begin and end, and the seconds of the processor till then.

    Args:
        place: folder of the notes.
        parent: the process that all others are below.
    """

    def __init__(self, place: str, parent: int) -> None:
        super().__init__()
        self.place, self.parent = place, parent
        self._cpu, self._now = Cpu(parent), dict[str, float]()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == AppEventType.ROUND_STARTED:
            self._now = {"began": time.time(), "cpu_before": self._cpu()}
        elif event_type == AppEventType.AFTER_AGGREGATION:
            self._now |= {"ended": time.time(), "cpu_after": self._cpu()}
            with open(Path(self.place, "server"), "a", encoding="utf-8") as notes:
                print(json.dumps(self._now), file=notes)


def simulate(job: Job, place: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """All rounds of a job, and the server's adapter after them, under PEFT's names.

    Args:
        place: folder for the job, notes and FLARE's own files.
    """
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.client.config import ExchangeFormat
    from nvflare.recipe import SimEnv, set_per_site_config

    (place / "job.json").write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # for FLARE's processes
    recipe = FedAvgRecipe(
        name=NAME, model={"class_path": "nvflare_app.Start", "args": {"place": str(place)}}, min_clients=job.clients,
        num_rounds=job.rounds, train_script=__file__, launch_external_process=True, command=f"{sys.executable} -u",
        server_expected_format=ExchangeFormat.PYTORCH, launch_timeout=None,
    )  # fmt: skip
    set_per_site_config(recipe, {name: {"train_args": f"{place} {i}"} for i, name in enumerate(job.files)})
    recipe._job.to_server(Watch(str(place), os.getpid()), id="watch")  # a recipe has no public way to add a component
    recipe.execute(SimEnv(clients=list(job.files), num_threads=job.clients, workspace_root=str(place / "flare")))

    def noted(name: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (place / name).read_text(encoding="utf-8").splitlines()]

    visits = zip(*(noted(f"client-{i}") for i in range(job.clients)), strict=True)
    rounds = [
        server | {key: statistics.mean(visit[key] for visit in own) for key in ("up", "down", "loss")}
        for server, own in zip(noted("server"), visits, strict=True)
    ]
    saved = place / "flare" / NAME / "server" / "simulate_job" / "app_server" / "FL_global_model.pt"
    return rounds, torch.load(saved, weights_only=True)["model"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a client of a job of flowertune.py, which NVIDIA FLARE starts")
    parser.add_argument("place")
    parser.add_argument("number", type=int)
    given = parser.parse_args()
    client(given.place, given.number)

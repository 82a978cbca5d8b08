"""CA-PFL with one part replaced: what each part is worth.

    capfl compare benchmarks/ablations.toml --data-dir FOLDER --out FOLDER

A comparison's spec names this file by ``rows``, and its variants the methods by ``method.name``. A row has its settings
already, so its random features are those of seed 0 whatever the run's seed is.

``no-peers`` has one group, and so nobody describes its data: its posterior has no features either. ``no-features`` is
that alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capfl.config.schema import MethodConfig
from capfl.maths.modulator import Modulator
from capfl.methods import Method, build
from capfl.methods.factors import ALTERNATING
from capfl.methods.grouping import Everybody
from capfl.methods.posterior import Importance, Posterior, PosteriorMemory
from capfl.methods.ranks import AllRanks
from capfl.methods.take_home import AfterSteps
from capfl.rng import stream
from capfl.types import ClientState, Trained

CA_PFL = build(MethodConfig(name="ca-pfl"))


@dataclass(frozen=True)
class ShuffledRanks(Posterior):
    """A client reports its importances in an order of chance: as many ranks are dropped, and other ones."""

    about = "by importances of the posterior, dealt out to ranks at random"

    def learn(self, trained: Trained, memory: ClientState, n_train: int) -> PosteriorMemory:
        kept = super().learn(trained, memory, n_train)
        own = kept.posterior
        order = torch.from_numpy(stream(self.seed, "kappa", memory.client).permutation(len(own.alpha)))
        return replace(kept, posterior=Importance(own.alpha[order], own.beta[order]))


@dataclass(frozen=True)
class OwnPosterior(Posterior):
    """A client fits its posterior without looking at the features of its data."""

    about = "by a posterior of its own, without features"

    def fitted(
        self, evidence: Tensor, kept: PosteriorMemory, memory: ClientState, n_train: int
    ) -> tuple[Importance, Modulator | None]:
        return super().fitted(evidence, kept, replace(memory, grouping=None), n_train)


def ablation(name: str, about: str, **parts: object) -> Method:
    return replace(CA_PFL, name=name, about=f"ca-pfl, {about}", source="an ablation", **parts)  # type: ignore[arg-type]


METHODS = {
    row.name: row
    for row in (
        ablation("no-peers", "everybody in one group, without features", grouping=Everybody()),
        ablation("all-ranks", "all ranks kept and sent alike", ranks=AllRanks()),
        ablation("random-ranks", "as many ranks dropped, at random", ranks=ShuffledRanks()),
        ablation("no-features", "a posterior that knows no features", ranks=OwnPosterior()),
        ablation("alternating", "B in odd rounds, A in even ones", factors=ALTERNATING),
        ablation("whole-step", "the whole last round of steps taken home", takes_home=AfterSteps(1.0)),
    )
}

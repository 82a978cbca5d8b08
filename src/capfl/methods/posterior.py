r"""Ranks by a variational posterior: the part of CA-PFL that learns how important each rank is to each client.

The importance :math:`\kappa_i > 0` of rank i of a module is the scale of its column :math:`b_i` of B: a rank that is
not needed has a small one. Client k keeps a Gamma posterior :math:`q_k(\kappa_i)` under a Gamma prior that all share.

**Posterior.** Its parameters are the prior's, modulated by the client's random Fourier features :math:`z_k`
(``maths.modulator``). With :math:`h_i` the Huber loss of :math:`\lVert b_i \rVert_1 / d_{out}`, the client fits the
modulator to

.. math:: \frac{\alpha_s}{n_k} \sum_i E_q[e_i / \kappa_i + \ln \kappa_i] + \frac{\alpha_p}{n_k} \sum_i KL(q_i \| p_i),

where :math:`e_i` is how sensitive the loss was to the rank during training, in units that keep the mean of :math:`h`.

**Local training** is regularised by :math:`\frac{\alpha_s}{n_k} \sum_i E_q[1 / \kappa_i] h_i`, with the posterior of
the round before. It is no term of the loss. After each step of the optimiser, every column keeps its direction, and the
proximal operator shortens its mean :math:`\lVert b_i \rVert_1 / d_{out}`, with the learning rate as its step.

**Ranks.** A rank with :math:`E_q[\kappa]` below a floor is missing from the client's own model, B column and A row. Its
peers may need it, so it is trained and sent all the same. The budget of a message is shared over the ranks in
proportion to the prior's :math:`E[\kappa]`, so that all clients send the same elements.

**Server.** The prior moves towards the moment-matched mean of all posteriors, as precisely as a message can say it.
That mean follows from the means of :math:`E_k[\kappa]` and :math:`E_k[\ln \kappa]`, so a server that sees sums alone
finds it too: there all clients count alike, and each keeps its posterior near the prior, in the place of the median.

Priors on scales follow BayesTune (Kim & Hospedales, NeurIPS 2023) and FedP2EFT (Lee et al., arXiv:2502.04387).
Differences from the published code of CA-PFL, which does not do what it describes, are in docs/capfl.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.maths import modulator
from capfl.maths.gamma import Gamma, barycentre, matched, moved
from capfl.maths.huber import huber, shrinkage
from capfl.maths.modulator import Modulator
from capfl.methods.peers import PeersMemory
from capfl.methods.ranks import Ranks
from capfl.types import Adapter, ClientId, ClientState, Penalty, ServerState, Trained, Update
from capfl.wire.records import rounded, vector

PRIOR_SHAPE, PRIOR_MEAN = 2.0, 0.01  # of kappa to begin with: about the mean |b| after a round
LEAST_SHAPE = 1.5  # of a prior: peers that differ would pull it below 1, where E[1 / kappa] is infinite
PRIOR_STEP = 0.5  # how far a prior moves in a round, in log space
WIDEST = 2.0  # a rank's share of a budget is within this factor of the mean: what is rare is scaled up, and noisy
NEWS = 1 / 3  # of the evidence, in log space, is the last round's: where the loss is nearly nil, it is noise
UNFELT = 1e-3  # of the mean: the evidence of a rank that the loss did not feel at all, which would take kappa to zero
FARTHEST = 1e6  # a posterior is within this factor of the first prior, in shape and mean
PRIOR_RANGE = 1e4  # the prior stays within this factor of the first one, so that no honest posterior is refused
AGREES = 5.0  # a posterior that is farther than this factor from the clients' median counts as if it were that far
SUMMED = 16.0  # in a sum, a posterior that is farther than this factor from the prior counts as if it were that far
DELTA = 0.01  # of the Huber loss: below, a column is as good as zero
ROUNDED = 5e-5  # rounding to whole numbers moves the mean of what clients add to a sum by less
FIT_STEPS, FIT_RATE = 50, 0.02  # of Adam on the modulator, after every round's training


@dataclass(frozen=True)
class Importance:
    """Gamma(alpha, beta) of every rank's kappa, (n,) float32 each: a prior, or a client's posterior."""

    alpha: Tensor = vector("positive")
    beta: Tensor = vector("positive")

    @staticmethod
    def of(gamma: Gamma) -> Importance:
        return Importance(gamma.alpha.float(), gamma.beta.float())

    @property
    def gamma(self) -> Gamma:
        return Gamma(self.alpha.double(), self.beta.double())

    @property
    def mean(self) -> Tensor:
        """E[kappa], (n,) float64."""
        return self.gamma.mean()


@dataclass(frozen=True)
class Prior:
    """Server to client: the prior, and to a newcomer the posterior that it begins with."""

    alpha: Tensor = vector("positive")
    beta: Tensor = vector("positive")
    own_alpha: Tensor | None = vector("positive", optional=True)
    own_beta: Tensor | None = vector("positive", optional=True)


@dataclass(frozen=True)
class PosteriorState:
    """What the server keeps: the prior, and the newest posterior of every client."""

    prior: Importance
    clients: Mapping[ClientId, Importance]


@dataclass(frozen=True)
class PosteriorMemory:
    """What a client keeps."""

    prior: Importance
    posterior: Importance
    evidence: Tensor | None = None  # (n,) float32; None: it has not trained
    modulator: Modulator | None = None


@dataclass(frozen=True)
class Posterior(Ranks):
    """Ranks by importance.

    Args:
        alpha_s: weight of the evidence and of the rank regulariser.
        alpha_p: weight of the KL divergence.
        hidden: width of the modulator.
        floor: a rank below this share of the mean importance is missing from the client's own model.
        seed: draws the modulator's first layer.
    """

    alpha_s: float = 0.01
    alpha_p: float = 0.01
    hidden: int = 16
    floor: float = 0.5
    seed: int = 0
    about = "by importance, learnt by a variational posterior"
    server_state = PosteriorState
    client_state = PosteriorMemory
    down = Prior
    up = Importance

    # -- client --------------------------------------------------------------------------------------

    def remember(self, said: object | None, memory: ClientState) -> PosteriorMemory:
        told, kept = cast(Prior, said), cast("PosteriorMemory | None", memory.ranks)
        prior = Importance(told.alpha, told.beta)
        if kept is not None:
            return replace(kept, prior=prior)
        if told.own_alpha is None or told.own_beta is None:
            return PosteriorMemory(prior, prior)
        return PosteriorMemory(prior, Importance(told.own_alpha, told.own_beta))

    def penalty(self, received: Adapter, memory: ClientState, n_train: int) -> Penalty:
        weights = self.alpha_s / n_train * _memory(memory).posterior.gamma.mean_inverse()
        constants = dict(algebra.by_module(weights.float(), received))

        def step(now: Adapter, constants: Mapping[str, Tensor], rate: float) -> Adapter:
            shorter = {}
            for name, up in algebra.factor(now, "B").items():  # none while A alone is trained
                weight = constants[name.removesuffix(".B")]
                shorter[name] = up * shrinkage(_column_norms(up), rate * weight, DELTA)
            return now | shorter

        return Penalty(step, constants)

    def learn(self, trained: Trained, memory: ClientState, n_train: int) -> PosteriorMemory:
        """What training has shown of the ranks so far, and the posterior that follows."""
        kept = _memory(memory)
        evidence = self.evidence(trained, kept)
        posterior, learnt = self.fitted(evidence, kept, memory, n_train)
        return PosteriorMemory(kept.prior, posterior, evidence.float(), learnt)

    def evidence(self, trained: Trained, kept: PosteriorMemory) -> Tensor:
        """e of every rank, (n,) float64: how the loss felt it, in this round and, fading, in those before."""
        norms = torch.cat([_column_norms(up) for _, _, up in algebra.factors(trained.adapter)]).double()
        h, felt = huber(norms, DELTA), trained.sensitivity.double()
        shown = kept.prior.mean if kept.evidence is None else kept.evidence.double()
        if not bool(felt.any()):  # B is zero before the first step, and then so is what that step feels
            return shown
        news = (felt * (h.mean() / felt.mean())).clamp_min(UNFELT * h.mean())  # in units of h, whose mean it keeps
        return shown * (news / shown) ** NEWS

    def fitted(
        self, evidence: Tensor, kept: PosteriorMemory, memory: ClientState, n_train: int
    ) -> tuple[Importance, Modulator | None]:
        """The posterior, and the modulator that gives it."""
        if not self.alpha_s:  # without evidence the posterior is the prior
            return kept.prior, None
        z = memory.grouping.z if isinstance(memory.grouping, PeersMemory) else None
        features, hidden = (torch.ones(1), 1) if z is None else (z, self.hidden)
        learnt = modulator.init(self.seed, len(features), hidden, len(evidence))
        before = kept.modulator
        if before is not None and (before.down.shape, before.up.shape) == (learnt.down.shape, learnt.up.shape):
            learnt = before
        weights = self.alpha_s / n_train, self.alpha_p / n_train
        prior = kept.prior.gamma
        learnt = modulator.fit(learnt, features, prior, evidence, *weights, steps=FIT_STEPS, rate=FIT_RATE)
        return Importance.of(modulator.posterior(learnt, features, prior)), learnt

    def report(self, memory: ClientState) -> Importance:
        return _memory(memory).posterior

    def to_sum(self, memory: ClientState) -> npt.NDArray[np.float64]:
        """For every rank r = E[kappa] / that of the prior; then ln(SUMMED / r) + ln E[kappa] - E[ln kappa]."""
        kept = _memory(memory)
        own, prior = kept.posterior.gamma, kept.prior.gamma
        ratio = (own.mean() / prior.mean()).clamp(1 / SUMMED, SUMMED)
        shape = torch.minimum(torch.maximum(own.alpha, prior.alpha / SUMMED), prior.alpha * SUMMED)
        return torch.cat([ratio, (SUMMED / ratio).log() + Gamma(shape, shape).mean_log().neg()]).numpy()

    # -- either side ---------------------------------------------------------------------------------

    def importance(self, kept: object | None) -> Tensor | None:
        """The importance of each rank: the prior's mean, which both sides keep, in units of its mean over ranks."""
        if kept is None:
            return None
        shared = cast("PosteriorState | PosteriorMemory", kept).prior.mean
        return (shared / shared.mean()).clamp(1 / WIDEST, WIDEST)

    def in_own_model(self, said: object | None) -> Tensor | None:
        """Marks of the ranks above the floor. The most important rank is always among them."""
        if said is None:
            return None
        own = _posterior(said).mean
        return (own >= self.floor * own.mean()) | (own == own.max())

    def kappa(self, said: object | None) -> Tensor | None:
        if said is None:
            return None
        own = _posterior(said).mean
        return (own / own.mean()).float()

    # -- server --------------------------------------------------------------------------------------

    def start(self, initial: Adapter, clients: Sequence[ClientId]) -> PosteriorState:
        n = sum(algebra.ranks(initial).values())
        prior = Importance(torch.full((n,), PRIOR_SHAPE), torch.full((n,), PRIOR_SHAPE / PRIOR_MEAN))
        return PosteriorState(prior, {})

    def announce(self, state: ServerState, client: ClientId) -> Prior:
        """The prior; and to a client that has never trained, the posterior that the server has found for it."""
        kept = cast(PosteriorState, state.ranks)
        own = kept.clients.get(client) if client not in state.visits else None
        return Prior(
            kept.prior.alpha, kept.prior.beta,
            own_alpha=own.alpha if own else None, own_beta=own.beta if own else None,
        )  # fmt: skip

    def check(self, state: ServerState, update: Update) -> None:
        """A posterior of every rank that is not out of all proportion to the prior of round 1.

        That of a later round is made of what clients say: a client that lies must not move another's bounds.
        """
        said = cast("Importance | None", update.ranks)
        if said is None:
            raise WireError("update has no posterior of the ranks' importance")
        n = len(cast(PosteriorState, state.ranks).prior.alpha)
        for name in ("alpha", "beta"):
            values: Tensor = getattr(said, name)
            if values.shape != (n,):
                raise WireError(f"Importance.{name} has {len(values)} numbers, the adapter has {n} ranks")
        for what, ratio in (("shape", said.gamma.alpha / PRIOR_SHAPE), ("mean", said.mean / PRIOR_MEAN)):
            if bool(((ratio < 1 / FARTHEST) | (ratio > FARTHEST)).any()):
                raise WireError(f"the posterior's {what} is not within a factor of {FARTHEST:g} of the first prior's")

    def combine(self, state: ServerState, updates: Mapping[ClientId, Update]) -> PosteriorState:
        kept = cast(PosteriorState, state.ranks)
        said = {client: cast(Importance, update.ranks) for client, update in updates.items()}
        if not said:
            return kept
        near = _near_the_median([own.gamma for own in said.values()])
        mean = barycentre(zip(near, (updates[client].n_train for client in said), strict=True))
        prior = _bounded(moved(kept.prior.gamma, mean, PRIOR_STEP))
        return PosteriorState(rounded(Importance.of(prior)), {**kept.clients, **said})

    def n_summed(self, n: int) -> int:
        return 2 * n

    def check_mean(self, mean: npt.NDArray[np.float64]) -> None:
        ratio, log = np.split(mean, 2)
        # the mean of logarithms is below the logarithm of the mean, but for what rounding makes of it
        if bool(((ratio < 1 / SUMMED - ROUNDED) | (ratio > SUMMED + ROUNDED) | (_gap(ratio, log) < -ROUNDED)).any()):
            raise WireError("the sum of what clients say of their ranks is none of posteriors")

    def combine_mean(self, state: ServerState, mean: npt.NDArray[np.float64]) -> PosteriorState:
        kept = cast(PosteriorState, state.ranks)
        ratio, log = np.split(mean, 2)
        gap = torch.from_numpy(_gap(ratio, log)).clamp_min(ROUNDED)
        together = matched(kept.prior.mean * torch.from_numpy(ratio), gap)
        return replace(kept, prior=rounded(Importance.of(_bounded(moved(kept.prior.gamma, together, PRIOR_STEP)))))

    def welcome(self, state: ServerState, client: ClientId, alike: Mapping[ClientId, float]) -> PosteriorState:
        """A newcomer begins with the moment-matched mean of the posteriors of those that it is like."""
        kept = cast(PosteriorState, state.ranks)
        parts = [(kept.clients[other].gamma, weight) for other, weight in alike.items() if other in kept.clients]
        own = Importance.of(_bounded(barycentre(parts))) if parts else kept.prior
        return replace(kept, clients={**kept.clients, client: own})


def _memory(memory: ClientState) -> PosteriorMemory:
    return cast(PosteriorMemory, memory.ranks)


def _posterior(said: object) -> Importance:
    return said if isinstance(said, Importance) else cast(PosteriorMemory, said).posterior


def _gap(ratio: npt.NDArray[np.float64], log: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """ln E[kappa] - E[ln kappa] of all clients together, of the means of what they have said (``to_sum``)."""
    gap: npt.NDArray[np.float64] = np.log(ratio) + log - np.log(SUMMED)
    return gap


def _near_the_median(posteriors: list[Gamma]) -> list[Gamma]:
    """The posteriors, with shapes and means of each rank moved to within a factor of AGREES of the clients' median."""
    means = torch.stack([one.mean() for one in posteriors])
    bounded = []
    for values in (torch.stack([one.alpha for one in posteriors]), means):
        middle = values.median(dim=0).values  # the lower one of an even number
        bounded.append(torch.minimum(torch.maximum(values, middle / AGREES), middle * AGREES))
    near = zip(posteriors, *bounded, means, strict=True)
    return [
        one if torch.equal(alpha, one.alpha) and torch.equal(mean, own) else Gamma(alpha, alpha / mean)
        for one, alpha, mean, own in near
    ]


def _bounded(prior: Gamma) -> Gamma:
    """A shape of at least LEAST_SHAPE, and shape and mean within PRIOR_RANGE of the first prior's."""
    alpha = prior.alpha.clamp(LEAST_SHAPE, PRIOR_SHAPE * PRIOR_RANGE)
    mean = prior.mean()
    return Gamma(alpha, alpha / mean.clamp(PRIOR_MEAN / PRIOR_RANGE, PRIOR_MEAN * PRIOR_RANGE))


def _column_norms(up: Tensor) -> Tensor:
    """||b||_1 / d_out of every column of B (d_out, r); (r,)."""
    return up.abs().mean(0)

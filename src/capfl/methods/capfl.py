r"""CA-PFL: client-adaptive parameter-efficient fine-tuning for personalised federated learning.

The importance :math:`\kappa_i > 0` of rank i of a module is the scale of its column :math:`b_i` of B: a rank that is
not needed has a small one. Client k keeps a Gamma posterior :math:`q_k(\kappa_i)` under a Gamma prior that all share.

**Posterior.** :math:`(\alpha, \beta)_k` are the prior's, modulated by the client's random Fourier features
:math:`z_k` (``maths.modulator``); with :math:`h_i` the Huber loss of :math:`\lVert b_i \rVert_1 / d_{out}`,
the client fits the modulator to

.. math:: \frac{\alpha_s}{n_k} \sum_i E_q[e_i / \kappa_i + \ln \kappa_i] + \frac{\alpha_p}{n_k} \sum_i KL(q_i \| p_i),

where :math:`e_i` is the loss's sensitivity to the rank during training, in units that keep the mean of :math:`h`, or
:math:`h` itself.

**Local training** minimises, with :math:`E_q[1 / \kappa]` of the round before,

.. math:: F_k(\theta) + \frac{\alpha_s}{n_k} \sum_i E_q[1 / \kappa_i] h_i
          + \frac{\alpha_f}{2} \lVert \theta - \theta_g \rVert^2

where the client has peers, and :math:`F_k` alone where it has none or does not know yet: joining takes nothing from it.
Until it knows it goes on from its own adapter, at first from the one that all begin with.

**Ranks.** A rank with :math:`E_q[\kappa]` below a floor is dropped, B column and A row: the client's own model does
without it. Its peers may need it, so it is trained and sent all the same. The budget of a message is shared over the
ranks in proportion to the prior's :math:`E[\kappa]`, so that all send the same elements.

**Peers.** Clients whose prompts look alike to the frozen base share an adapter; a client without peers
trains on from its own adapter (``methods.peers``).

**Beyond the paper**, off unless asked for. ``alternate``: odd rounds train and send B, even rounds A, so that the mean
of a group's products is the product of its means (``methods.rolora``). ``gate``: the update is
:math:`B \operatorname{diag}(g) A` with :math:`g_i = E_q[\kappa_i]` over its mean, fixed during a round, as in FedP2EFT.
What is trained, sent and averaged are A and B without it; it goes into B where a personal adapter is made.

**Server.** :math:`\theta_g \leftarrow \theta_g + \sum_k p_k \Delta_k` over the peers; the prior moves towards the
moment-matched mean of all posteriors, as precisely as a message can say it.

Differences from the published code, which does not do what it describes, are in docs/capfl.md. Priors on scales follow
BayesTune (Kim & Hospedales, NeurIPS 2023) and FedP2EFT (Lee et al., arXiv:2502.04387).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.config.schema import MethodConfig
from capfl.errors import WireError
from capfl.maths import ard, modulator
from capfl.maths.fourier import Doubles, frequencies
from capfl.maths.gamma import Gamma, barycentre, moved
from capfl.maths.huber import huber
from capfl.maths.modulator import Modulator
from capfl.methods import peers
from capfl.methods.base import Method
from capfl.rng import stream
from capfl.types import Adapter, ClientId, ClientState, NoteKind, Notes, Penalty, ServerState, Trained, Update
from capfl.wire.notes import rounded

PRIOR_SHAPE, PRIOR_MEAN = 2.0, 0.01  # of kappa to begin with: about the mean |b| after a round
LEAST_SHAPE = 1.5  # of a prior: peers that differ would pull it below 1, where E[1 / kappa] is infinite
PRIOR_STEP = 0.5  # how far a prior moves in a round, in log space
WIDEST = 2.0  # a rank's share of a budget is within this factor of the mean: what is rare is scaled up, and noisy
NEWS = 1 / 3  # of the evidence, in log space, is the last round's: where the loss is nearly nil, it is noise
UNFELT = 1e-3  # of the mean: the evidence of a rank that the loss did not feel at all, which would take kappa to zero
FARTHEST = 1e6  # a posterior is within this factor of the prior, in shape and mean
PRIOR = "prior "  # what a client calls the server's prior, beside its own posterior
PERSONAL_MIX = 0.5  # of a personal model: halfway from the peers' adapter to where local steps lead
DELTA = 0.01  # of the Huber loss: below, a column is as good as zero
FIT_STEPS, FIT_RATE = 50, 0.02  # of Adam on the modulator, after every round's training

KINDS: dict[str, NoteKind] = {
    "alpha": "positive", "beta": "positive", "z": "bf16", "peers": "positive", "features": "bf16", "deviation": "bf16",
    "own alpha": "positive", "own beta": "positive", "answers": "positive",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The flags of CA-PFL, by the paper's names where it has them. The defaults are measured: docs/capfl.md."""

    alpha_s: float = 1e-4
    alpha_p: float = 1e-5
    alpha_f: float = 0.0
    rff_output_dim: int = 256
    mlp_hidden_dim: int = 16
    base_sparsity_ratio: float | None = None  # the codec's density, see Config.agreed_codec
    kappa: Literal["modulated", "free", "ard", "random"] = "modulated"
    evidence: Literal["sensitivity", "norm"] = "sensitivity"
    budget: Literal["kappa", "uniform"] = "kappa"
    rank_floor: float = 0.5
    peers: Literal["features", "all"] = "features"
    peer_distance: float = 0.08
    alternate: bool = False
    gate: bool = False

    @staticmethod
    def of(config: MethodConfig) -> Settings:
        given = {name: getattr(config, name) for name in Settings.names()}
        return Settings(**{name: value for name, value in given.items() if value is not None})

    @staticmethod
    def names() -> tuple[str, ...]:
        return tuple(field.name for field in fields(Settings))


def capfl(settings: Settings, seed: int) -> Method:
    """CA-PFL. ``seed`` draws the random features, which everybody must share."""
    finds_peers = settings.peers == "features"

    @cache
    def omega(d: int) -> Doubles:
        return frequencies(seed, d, settings.rff_output_dim)

    # -- server --------------------------------------------------------------------------------------

    def brief(server: ServerState, client: ClientId) -> Notes:
        """The prior; and once, when the server has seen its features, the client's z; and how many peers it has."""
        told = {name: server.notes[name] for name in ("alpha", "beta")}
        if peers.is_new(server, client):
            told["z"] = peers.fourier_of(server, client, omega)
            told |= {f"own {name}": server.notes[f"{name}/{client}"] for name in ("alpha", "beta")}
        return told | peers.count(server, client)

    def inspect(server: ServerState, update: Update) -> None:
        """A posterior of every rank that is not out of all proportion to the prior, and a description or none."""
        prior, said = _gamma(server.notes), update.notes
        for name in ("alpha", "beta"):
            if name not in said or said[name].shape != prior.alpha.shape:
                raise WireError(f"note {name!r} is not {len(prior.alpha)} numbers, one a rank")
        own = _gamma(said)
        for what, ratio in (("shape", own.alpha / prior.alpha), ("mean", own.mean() / prior.mean())):
            if bool(((ratio < 1 / FARTHEST) | (ratio > FARTHEST)).any()):
                raise WireError(f"the posterior's {what} is not within a factor of {FARTHEST:g} of the prior's")
        if unknown := said.keys() - {"alpha", "beta", *peers.DESCRIPTION}:
            raise WireError(f"note {min(unknown)!r} is the server's to send, not a client's")
        peers.inspect(said)

    def meet(server: ServerState, client: ClientId, said: Notes) -> ServerState:
        """A newcomer goes to its peers, and begins with the posterior of those whose features are like its own.

        That is the moment-matched mean of theirs, with weights n_k max(0, z . z_k).
        """
        server = peers.introduced(server, {client: said})
        server = peers.placed(server, [client], settings.peer_distance) if finds_peers else server
        z = peers.fourier_of(server, client, omega)
        fellows = peers.fellows(server, client)
        weights = {other: n * float(z @ peers.fourier_of(server, other, omega)) for other, n in fellows.items()}
        parts = [(_gamma(server.notes, after=f"/{other}"), weight) for other, weight in weights.items() if weight > 0]
        own = _bounded(barycentre(parts)) if parts else _gamma(server.notes)
        return replace(server, notes=server.notes | _of_client(client, own))

    def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
        """Add the mean change to the adapter of all and to that of each group, then place the clients that are new."""
        means: dict[str, algebra.Mean] = defaultdict(algebra.Mean)
        posteriors: list[tuple[Gamma, float]] = []
        last: Notes = {}
        described: dict[ClientId, Notes] = {}
        for update in updates:
            own = server.group_of.get(update.client, peers.EVERYBODY)
            for name in {peers.EVERYBODY, own}:
                means[name].add(update.adapter, update.n_train)
            posteriors.append((_gamma(update.notes), update.n_train))
            last |= _of_client(update.client, _gamma(update.notes))
            if "features" in update.notes:
                described[update.client] = update.notes | {"items": torch.tensor([float(update.n_train)])}

        def stepped(name: str, state: ServerState) -> ServerState:
            return replace(state, adapter=algebra.add(state.adapter, means[name].value())) if name in means else state

        prior = _bounded(moved(_gamma(server.notes), barycentre(posteriors), PRIOR_STEP))
        notes = server.notes | last | rounded({"alpha": prior.alpha.float(), "beta": prior.beta.float()}, KINDS)
        groups = {name: stepped(name, group) for name, group in server.groups.items()}
        server = replace(stepped(peers.EVERYBODY, server), groups=groups, notes=notes)
        server = peers.introduced(server, described)
        return peers.placed(server, sorted(described), settings.peer_distance) if finds_peers else server

    # -- client --------------------------------------------------------------------------------------

    def heed(told: Notes, memory: ClientState) -> ClientState:
        notes = memory.notes | {f"{PRIOR}{name}": told[name] for name in ("alpha", "beta")}
        notes |= {name: told[name] for name in ("z", "peers") if name in told}
        if "alpha" not in notes:  # nothing learnt yet: the posterior is the prior, or what its likes have
            notes |= {name: told.get(f"own {name}", told[name]) for name in ("alpha", "beta")}
        return replace(memory, notes=notes)

    def install(received: Adapter, memory: ClientState) -> Adapter:
        """The peers' adapter, or its own for want of peers, or until it is known who they are."""
        return memory.adapter if finds_peers and _is_alone(memory) else received

    def settle(start: Adapter, memory: ClientState) -> Adapter:
        """What a personal model may have: no rank that the client has dropped."""
        return algebra.without(start, ~alive(memory.notes))

    def kappa(notes: Notes) -> Tensor:
        """Of every rank, (n,) float32: its importance to a client, over the mean."""
        own = _gamma(notes).mean()
        return (own / own.mean()).float()

    def penalty(received: Adapter, memory: ClientState) -> Penalty:
        gate = kappa(memory.notes) if settings.gate else None
        if finds_peers and _n_peers(memory) < 2:
            return Penalty(lambda now, constants: next(iter(now.values())).new_zeros(()), {}, gate)
        n_train = float(memory.notes["items"][0])
        weights = settings.alpha_s / n_train * _gamma(memory.notes).mean_inverse()
        constants = dict(algebra.by_module(weights.float(), received))

        def term(now: Adapter, constants: Mapping[str, Tensor]) -> Tensor:
            ups = [name.removesuffix(".B") for name in algebra.factor(now, "B")]  # none while A alone is trained
            terms = [(constants[module] * huber(_column_norms(now[f"{module}.B"]), DELTA)).sum() for module in ups]
            if settings.alpha_f:
                terms.append(settings.alpha_f / 2 * algebra.squared_distance(now, constants))
            return torch.stack(terms).sum() if terms else next(iter(now.values())).new_zeros(())

        return Penalty(term, constants | (received if settings.alpha_f else {}), gate)

    def collect(start: Adapter, trained: Trained, memory: ClientState) -> tuple[Adapter, ClientState]:
        """The change, and what training has shown of the ranks so far."""
        norms = torch.cat([_column_norms(up) for _, _, up in algebra.factors(trained.adapter)]).double()
        h = huber(norms, DELTA)
        felt = trained.sensitivity.double() if settings.evidence == "sensitivity" else h
        if settings.gate and felt is not h:  # by the gate itself: else a rank would be felt less for having a small one
            felt = felt / kappa(memory.notes)
        shown = memory.notes["evidence"].double() if "evidence" in memory.notes else _gamma(memory.notes, PRIOR).mean()
        if bool(felt.any()):  # B is zero before the first step, and then so is what that step feels
            news = (felt * (h.mean() / felt.mean())).clamp_min(UNFELT * h.mean())  # in units of h, whose mean it keeps
            shown = shown * (news / shown) ** NEWS
        learnt = _learnt(shown, memory, settings, seed) | {"evidence": shown.float()}
        change = algebra.subtract(trained.adapter, start)
        change = algebra.moved(change) if settings.alternate else change
        return change, replace(memory, notes=memory.notes | learnt, adapter=trained.adapter if finds_peers else {})

    def report(memory: ClientState) -> Notes:
        said = ["alpha", "beta"] if "z" in memory.notes else ["alpha", "beta", *peers.DESCRIPTION]
        return {name: memory.notes[name] for name in said if name in memory.notes}

    def alive(notes: Notes) -> Tensor:
        """Which ranks a client's own model keeps, by its posterior: at least the most important."""
        own = _gamma(notes).mean()
        if settings.budget == "uniform":
            return torch.ones_like(own, dtype=torch.bool)
        return (own >= settings.rank_floor * own.mean()) | (own == own.max())

    def importance(notes: Notes) -> Tensor | None:
        """By the prior: a client remembers the server's beside its own posterior."""
        if settings.budget == "uniform":
            return None
        shared = (_gamma(notes, PRIOR) if f"{PRIOR}alpha" in notes else _gamma(notes)).mean()
        return (shared / shared.mean()).clamp(1 / WIDEST, WIDEST)

    return Method(
        name="ca-pfl",
        about="peers found by their data, ranks by a variational posterior",
        citation="YanDang/CA-PFL",
        travels="A and B, by importance",
        exact=True if settings.alternate else None,
        init_server=lambda init: ServerState(0, init, notes=_first_prior(init)),
        init_client=lambda client, init: ClientState(client, adapter=init if finds_peers else {}),
        broadcast=lambda server: server.adapter,
        install=install,
        trainable=lambda round, name: not settings.alternate or name.endswith(".B" if round % 2 else ".A"),
        penalty=penalty,
        collect=collect,
        aggregate=aggregate,
        kinds=KINDS,
        brief=brief,
        heed=heed,
        report=report,
        inspect=inspect,
        meet=meet,
        describes=True,
        mix=lambda memory: 1.0 if finds_peers and _is_alone(memory) else PERSONAL_MIX,
        importance=importance,
        alive=alive,
        kappa=kappa,
        settle=settle,
    )


def _first_prior(init: Adapter) -> Notes:
    n = sum(algebra.ranks(init).values())
    return {"alpha": torch.full((n,), PRIOR_SHAPE), "beta": torch.full((n,), PRIOR_SHAPE / PRIOR_MEAN)}


def _learnt(shown: Tensor, memory: ClientState, settings: Settings, seed: int) -> Notes:
    """The posterior, and the modulator that gives it. ``shown`` is the evidence h of every rank, (n,) float64."""
    notes = memory.notes
    prior = _gamma(notes, PRIOR)
    n_train = float(notes["items"][0])
    if settings.kappa == "ard":  # the same numbers without any learning
        d = torch.cat([torch.full((up.shape[1],), float(len(up))) for _, _, up in algebra.factors(memory.known)])
        kappa = ard.exact(Gamma(prior.alpha, prior.alpha / prior.beta), shown * d, d)
        return {"alpha": prior.alpha.float(), "beta": (prior.alpha / kappa).float()}
    if not settings.alpha_s:  # without evidence the posterior is the prior
        return {"alpha": prior.alpha.float(), "beta": prior.beta.float()}
    free = settings.kappa == "free" or "z" not in notes
    z = torch.ones(1) if free else notes["z"]
    hidden = 1 if free else settings.mlp_hidden_dim
    learnt = modulator.init(seed, len(z), hidden, len(shown))
    sizes = learnt.down.numel(), learnt.up.numel()
    if "up" in notes and (notes["down"].numel(), notes["up"].numel()) == sizes:
        learnt = Modulator(notes["down"].reshape(learnt.down.shape), notes["up"].reshape(learnt.up.shape))
    weights = settings.alpha_s / n_train, settings.alpha_p / n_train
    learnt = modulator.fit(learnt, z, prior, shown, *weights, steps=FIT_STEPS, rate=FIT_RATE)
    posterior = modulator.posterior(learnt, z, prior)
    alpha, beta = posterior.alpha.float(), posterior.beta.float()
    if settings.kappa == "random":
        order = torch.from_numpy(stream(seed, "kappa", memory.client).permutation(len(shown)))
        alpha, beta = alpha[order], beta[order]
    return {"alpha": alpha, "beta": beta, "down": learnt.down.flatten(), "up": learnt.up.flatten()}


def _gamma(notes: Notes, before: str = "", after: str = "") -> Gamma:
    """A client's posterior, or the server's prior; or what stands beside it, under longer names."""
    return Gamma(*(notes[f"{before}{name}{after}"].double() for name in ("alpha", "beta")))


def _of_client(client: ClientId, posterior: Gamma) -> Notes:
    """What the server remembers of a client's posterior."""
    return {f"alpha/{client}": posterior.alpha.float(), f"beta/{client}": posterior.beta.float()}


def _bounded(prior: Gamma) -> Gamma:
    """The same mean, with a shape of at least LEAST_SHAPE."""
    alpha = prior.alpha.clamp_min(LEAST_SHAPE)
    return Gamma(alpha, alpha / prior.mean())


def _is_alone(memory: ClientState) -> bool:
    """Has it no peers, as far as it knows, and a part in the run? A newcomer without peers is given what all have."""
    return _n_peers(memory) == 0 or (_n_peers(memory) == 1 and "evidence" in memory.notes)


def _n_peers(memory: ClientState) -> int:
    """Clients in its group, itself included; 0 if it has not been told."""
    return int(memory.notes["peers"][0]) if "peers" in memory.notes else 0


def _column_norms(up: Tensor) -> Tensor:
    """||b||_1 / d_out of every column of B (d_out, r); (r,)."""
    return up.abs().mean(0)

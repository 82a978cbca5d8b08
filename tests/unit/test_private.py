"""Differential privacy: what one client can change, where the noise is, and what epsilon is counted."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import kstest, norm

import capfl.methods.private as module
from adapters import CODECS
from capfl import adapter as algebra
from capfl.checkpoint import RunFolder
from capfl.config import load_config
from capfl.config.schema import MethodConfig, PrivacyConfig
from capfl.errors import ConfigError
from capfl.maths.privacy import epsilon, gaussian
from capfl.methods import Method, build
from capfl.methods.private import private
from capfl.types import Adapter, ServerState, Update
from capfl.wire import up_codec
from fake import Fake, bits, initial
from support import tiny_run

ON = PrivacyConfig(clip=1.0, noise_multiplier=0.5, seed=7)
START = ServerState(0, initial(), known={})


def made(method: str = "fedit", codec: str = "fp32", config: PrivacyConfig = ON, asked: int = 4) -> Method:
    return private(build(MethodConfig(name=method)), config, up_codec(CODECS[codec], 3), initial(), 10, asked)


def update(value: float, client: str = "a", n_train: int = 10) -> Update:
    return Update(1, client, {name: torch.full_like(t, value) for name, t in initial().items()}, n_train, 1, 1.0)


def step(method: Method, updates: Iterable[Update]) -> Adapter:
    return algebra.subtract(method.aggregate(START, updates).adapter, START.adapter)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise, to see what is under it."""
    monkeypatch.setattr(module, "gaussian", lambda n, draw: torch.zeros(n, dtype=torch.float64))


# -- the sum ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("silent")
def test_the_sum_by_hand() -> None:
    n = algebra.size(initial())
    short, long = 0.5 / math.sqrt(n), 30 / math.sqrt(n)  # norms 0.5 and 30
    moved = step(made(asked=4), [update(short), update(long, n_train=1_000_000)])
    expected = (0.5 + 1.0) / math.sqrt(n) / 4  # four were asked, two answered; nobody's items count
    for t in moved.values():
        torch.testing.assert_close(t, torch.full_like(t, expected), atol=1e-7, rtol=0)


@pytest.mark.usefixtures("silent")
@given(st.lists(st.floats(-1e6, 1e6), max_size=5), st.floats(-1e30, 1e30))
def test_one_client_more_moves_the_sum_by_no_more_than_the_clip(others: list[float], value: float) -> None:
    heard = [update(v) for v in others]
    without, with_it = (step(made(asked=4), parts) for parts in (heard, [*heard, update(value)]))
    assert 4 * algebra.norm(algebra.subtract(with_it, without)) <= 1 + 1e-5


def test_nobody_there_is_noise_all_the_same() -> None:
    assert algebra.norm(step(made(), [])) > 0


# -- the noise -------------------------------------------------------------------------------------------


def test_the_noise_is_normal_and_of_the_right_size() -> None:
    drawn = torch.cat([t.flatten() for round in range(200) for t in step_in(round).values()]).double() * 4 / 0.5
    assert len(drawn) == 200 * 180
    assert abs(float(drawn.std()) - 1) < 0.02  # standard error 0.004
    assert kstest(drawn.numpy(), norm.cdf).pvalue > 1e-3


def step_in(round: int) -> Adapter:
    start = replace(START, round=round, adapter={name: torch.zeros_like(t) for name, t in initial().items()})
    return made().aggregate(start, []).adapter


def test_normal_numbers_of_given_bits_by_hand() -> None:
    words = np.array([0, 2**63, 2**64 - 1, 2**62], "<u8")
    found = gaussian(4, lambda n: words.tobytes())
    expected = norm.ppf([2**-53, 0.5 + 2**-53, 1 - 2**-53, 0.25 + 2**-53])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-15)
    assert 8.2 < found.abs().max() < 8.3


def test_a_seed_repeats_the_noise_and_without_one_nothing_does() -> None:
    assert bits(step(made(), [])) == bits(step(made(), []))
    assert bits(step_in(1)) != bits(step_in(2))
    other = PrivacyConfig(clip=1.0, noise_multiplier=0.5, seed=8)
    assert bits(step(made(config=other), [])) != bits(step(made(), []))
    secret = PrivacyConfig(clip=1.0, noise_multiplier=0.5)
    assert bits(step(made(config=secret), [])) != bits(step(made(config=secret), []))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("method", ["fedit", "ffa-lora", "fedsa-lora", "rolora"])
def test_noise_is_on_all_that_a_message_may_have_and_on_nothing_else(method: str, codec: str) -> None:
    """Whatever a client sends there, noise is on it; what lies elsewhere would scale the server's answer."""
    built = made(method, codec)
    up = up_codec(CODECS[codec], 3)
    for round in (1, 2, 3):
        state = replace(START, round=round - 1)
        moved = algebra.subtract(built.aggregate(state, [replace(update(1.0), round=round)]).adapter, state.adapter)
        sent = {n: t for n, t in built.broadcast(state).items() if built.trainable(round, n)}
        reach = up.reach(sent, initial(), round)
        assert 0 < len(sent) <= len(initial())
        for name, t in moved.items():
            expected = reach[name] if name in reach else torch.zeros_like(t, dtype=torch.bool)
            assert torch.equal(t != 0, expected)


@pytest.mark.parametrize("codec", ["default", "unbiased-bf16", "fp32", "4bit"])
@pytest.mark.parametrize("method", ["fedit", "rolora"])
def test_with_hardly_any_noise_it_is_the_plain_mean(method: str, codec: str) -> None:
    """So what clients learn of it has the right scale too, with any codec."""
    plain, quiet = Fake(method, codec), Fake(method, codec)
    config = PrivacyConfig(clip=1e6, noise_multiplier=1e-15, seed=1)
    agreed = quiet.agreement
    quiet.agreement = replace(agreed, method=private(agreed.method, config, agreed.up, agreed.initial, 10, 3))

    def alike(fake: Fake) -> Fake:
        method = fake.agreement.method

        def aggregate(state: ServerState, updates: Iterable[Update]) -> ServerState:
            return method.aggregate(state, (replace(u, n_train=1) for u in updates))

        fake.agreement = replace(fake.agreement, method=replace(method, aggregate=aggregate))
        return fake

    alike(plain).play(3)
    alike(quiet).play(3)
    for name, t in plain.state.adapter.items():
        torch.testing.assert_close(quiet.state.adapter[name], t, atol=1e-6, rtol=1e-4)


# -- epsilon ----------------------------------------------------------------------------------------------


def exact(noise: float, rounds: int, delta: float) -> float:
    """Balle & Wang, arXiv:1805.06530, theorem 8: the Gaussian mechanism, of which so many rounds are one."""
    s = noise / math.sqrt(rounds)

    def missing(e: float) -> float:
        return float(norm.cdf(1 / (2 * s) - e * s) - np.exp(e + norm.logcdf(-1 / (2 * s) - e * s)) - delta)

    return float(brentq(missing, 0, 1e4))


@pytest.mark.parametrize("noise", [0.7, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("rounds", [1, 10, 200])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_epsilon_is_an_upper_bound_and_a_near_one(noise: float, rounds: int, delta: float) -> None:
    bound, least = epsilon(noise, rounds, delta), exact(noise, rounds, delta)
    assert least <= bound < 1.15 * least + 0.05


def test_epsilon_of_no_round_is_zero() -> None:
    assert epsilon(1.0, 0, 1e-5) == 0.0
    assert made().epsilon is not None
    assert made().epsilon(3) == epsilon(0.5, 3, 1e-5)  # type: ignore[misc]


def test_epsilon_is_of_the_client_that_took_part_most_often(runs: Path) -> None:
    settings: dict[str, object] = {"privacy__clip": 1.0, "privacy__noise_multiplier": 2.0}
    summary = tiny_run(runs, data__sites=4, federation__fraction=0.25, federation__rounds=4, **settings)
    taken: dict[str, int] = {}
    for record in RunFolder(runs).rounds():
        for client in record.clients:
            taken[client] = taken.get(client, 0) + 1
        assert record.epsilon == epsilon(2.0, max(taken.values()), 1e-5)
    assert max(taken.values()) < 4
    assert (summary.epsilon, summary.delta) == (record.epsilon, 1e-5)
    assert summary.to_json()["privacy"] == {"epsilon": record.epsilon, "delta": 1e-5}


# -- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("ca-pfl", "clients of ca-pfl say more than their changes"),
        ("flexlora", "more with changes than to add their mean"),
        ("lora-fair", "more with changes than to add their mean"),
        ("flasc", "more with changes than to add their mean"),
        ("hetlora", "clients of hetlora say more than their changes"),
        ("fedex-lora", "gets the others' updates as they came"),
        ("flora", "gets the others' updates as they came"),
        ("local", "clients send nothing"),
        ("centralised", "all data in one place"),
    ],
)
def test_a_method_that_it_cannot_protect(method: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^privacy\.noise_multiplier: .*{reason}.*(leave it out|use fedit)"):
        made(method)
    assert made(method, config=PrivacyConfig()).name == method


def test_a_delta_that_gives_somebody_away() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.delta: 0\.1 lets one of 10 clients"):
        made(config=PrivacyConfig(clip=1.0, noise_multiplier=1.0, delta=0.1))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"privacy.clip": 1.0}, "give both or neither"),
        ({"privacy.noise_multiplier": 1.0}, "give both or neither"),
        ({"privacy.clip": 1.0, "privacy.noise_multiplier": 0.0}, "noise_multiplier"),
        ({"privacy.clip": 1.0, "privacy.noise_multiplier": 1.0, "federation.robust": "median"}, "leave one of them"),
    ],
)
def test_a_config_that_makes_no_sense(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(None, settings)


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'capfl\[privacy\]'"):
        made()

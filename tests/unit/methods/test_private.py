"""Differential privacy: what one client can change, where the noise is, and what epsilon is counted."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import kstest, norm

import capfl.methods.private as module
from adapters import CODECS
from capfl import adapter as algebra
from capfl.checkpoint import RunFolder
from capfl.config import load_config
from capfl.config.privacy import Noise, PrivacyConfig
from capfl.config.schema import MethodConfig
from capfl.errors import ConfigError
from capfl.maths.privacy import epsilon, gaussian
from capfl.methods import METHODS, Method, build
from capfl.methods.private import Noisy, private
from capfl.rng import stream
from capfl.types import Adapter
from capfl.wire import up_codec
from fake import bits
from parts import INITIAL, Federation, folded
from support import tiny_run

ON = PrivacyConfig(clip=1.0, noise_multiplier=0.5)
ZERO = algebra.zeros(INITIAL)


def made(method: str = "fedit", codec: str = "fp32", config: PrivacyConfig = ON, asked: int = 4) -> Method:
    return private(build(MethodConfig(name=method)), config, up_codec(CODECS[codec], 3), 10, asked)


def filled(value: float) -> Adapter:
    return {name: torch.full_like(t, value) for name, t in INITIAL.items()}


def moved(method: Method, parts: Sequence[tuple[Adapter, float]] = (), round: int = 1) -> Adapter:
    return folded(method.combine, parts, ZERO, round)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise, to see what is under it."""
    monkeypatch.setattr(module, "gaussian", lambda n, draw: torch.zeros(n, dtype=torch.float64))


# -- the sum -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("silent")
def test_the_sum_by_hand() -> None:
    n = algebra.size(INITIAL)
    short, long = 0.5 / math.sqrt(n), 30 / math.sqrt(n)  # norms 0.5 and 30
    expected = (0.5 + 1.0) / math.sqrt(n) / 4  # four were asked, two answered; nobody's items count
    for t in moved(made(asked=4), [(filled(short), 1), (filled(long), 1_000_000)]).values():
        torch.testing.assert_close(t, torch.full_like(t, expected), atol=1e-7, rtol=0)


@pytest.mark.usefixtures("silent")
@settings(max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6), max_size=5), st.floats(-1e30, 1e30))
def test_one_client_more_moves_the_sum_by_no_more_than_the_clip(others: list[float], value: float) -> None:
    parts = [(filled(v), 1.0) for v in others]
    without, with_it = (moved(made(asked=4), some) for some in (parts, [*parts, (filled(value), 99.0)]))
    assert 4 * algebra.norm(algebra.subtract(with_it, without)) <= 1 + 1e-5


# -- the noise -----------------------------------------------------------------------------------------------------


def test_the_noise_is_normal_of_the_right_size_and_there_whoever_answers() -> None:
    method = made(config=PrivacyConfig(clip=3.0, noise_multiplier=0.5), asked=4)
    drawn = torch.cat([t.flatten() for round in range(1, 201) for t in moved(method, [], round).values()]).double()
    assert len(drawn) == 200 * 180
    assert float(drawn.std()) == pytest.approx(3 * 0.5 / 4, rel=0.02)  # standard error 0.4 %
    assert kstest(drawn.numpy() / (3 * 0.5 / 4), norm.cdf).pvalue > 1e-3


def test_normal_numbers_of_given_bits_by_hand() -> None:
    words = np.array([0, 2**63, 2**64 - 1, 2**62], "<u8")
    expected = norm.ppf([2**-53, 0.5 + 2**-53, 1 - 2**-53, 0.25 + 2**-53])
    np.testing.assert_allclose(gaussian(4, lambda n: words.tobytes()).numpy(), expected, rtol=1e-9, atol=1e-15)


def test_nothing_repeats_the_noise_but_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bits(moved(made())) != bits(moved(made()))
    found = set()
    for _ in range(2):
        monkeypatch.setattr("os.urandom", stream(7, "the operating system").bytes)
        found.add(bits(moved(made())))
    assert len(found) == 1


@pytest.mark.parametrize("codec", ["fp32", "default", "4bit", "random", "unbiased-bf16"])
@pytest.mark.parametrize("method", ["fedit", "ffa-lora", "fedsa-lora", "rolora"])
def test_noise_is_on_all_that_a_message_may_have_and_on_nothing_else(method: str, codec: str) -> None:
    """Whatever a client sends there, noise is on it; what lies elsewhere would scale the server's answer."""
    built, up = made(method, codec), up_codec(CODECS[codec], 3)
    for round in (1, 2):
        sent = {name: INITIAL[name] for name in built.factors.sent(round, INITIAL)}
        reach = up.reach(sent, INITIAL, round)
        for name, t in moved(built, [(filled(1.0), 1.0)], round).items():
            expected = reach[name] if name in sent else torch.zeros_like(t, dtype=torch.bool)
            assert torch.equal(t != 0, expected)


@pytest.mark.parametrize(("method", "codec"), [("fedit", "default"), ("rolora", "unbiased-bf16"), ("fedit", "4bit")])
def test_with_hardly_any_noise_it_is_the_plain_mean(method: str, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what clients are sent of it has the right scale too."""
    monkeypatch.setattr("fake.n_train", lambda client: 10)  # all count alike
    plain = Federation(build(MethodConfig(name=method)), codec)
    quiet = Federation(made(method, codec, PrivacyConfig(clip=1e6, noise_multiplier=1e-15), asked=3), codec)
    plain.rounds(2)
    quiet.rounds(2)
    assert isinstance(quiet.agreement.method.combine, Noisy)
    for name, t in plain.state.everybody.known.items():
        torch.testing.assert_close(quiet.state.everybody.known[name], t, atol=1e-6, rtol=1e-4)


# -- epsilon -------------------------------------------------------------------------------------------------------


def exact(noise: float, rounds: int, delta: float) -> float:
    """Balle & Wang, arXiv:1805.06530, theorem 8: the Gaussian mechanism, of which so many rounds are one."""
    s = noise / math.sqrt(rounds)

    def missing(e: float) -> float:
        return float(norm.cdf(1 / (2 * s) - e * s) - np.exp(e + norm.logcdf(-1 / (2 * s) - e * s)) - delta)

    return float(brentq(missing, 0, 1e4))


@pytest.mark.parametrize(
    ("noise", "rounds", "delta"), [(0.7, 1, 1e-3), (1.0, 10, 1e-6), (3.0, 200, 1e-6), (20.0, 10, 1e-3)]
)
def test_epsilon_is_an_upper_bound_and_a_near_one(noise: float, rounds: int, delta: float) -> None:
    bound, least = epsilon(noise, rounds, delta), exact(noise, rounds, delta)
    assert least <= bound < 1.15 * least + 0.05


def test_epsilon_of_no_round_is_zero_and_of_a_method_is_of_its_noise() -> None:
    assert epsilon(1.0, 0, 1e-5) == 0.0
    assert made().combine.noise == Noise(1.0, 0.5, 1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("rounds", "most", "more"),
    [
        (4, 3, {"federation__fraction": 0.25}),
        (2, 2, {"federation__fraction": 0.75, "privacy__secure_aggregation": "honest-server",
                "codec__values": "ternary"}),
    ],
)  # fmt: skip
def test_epsilon_is_of_the_client_that_took_part_most_often(
    runs: Path, rounds: int, most: int, more: dict[str, object]
) -> None:
    settings: dict[str, object] = {"privacy__clip": 1.0, "privacy__noise_multiplier": 2.0, "method__name": "fedit"}
    summary = tiny_run(runs, data__sites=4, federation__rounds=rounds, **settings, **more)
    taken: dict[str, int] = {}
    for record in RunFolder(runs).rounds():
        for client in record.clients:
            taken[client] = taken.get(client, 0) + 1
        assert record.epsilon == epsilon(2.0, max(taken.values()), 1e-5)
    assert max(taken.values()) <= most
    assert (summary.epsilon, summary.delta) == (record.epsilon, 1e-5)


# -- refused -------------------------------------------------------------------------------------------------------

REFUSED = {
    "ca-pfl": "clients of ca-pfl train in 6 turns", "flexlora": "more than add a mean of changes",
    "lora-fair": "more than add a mean of changes", "fedex-lora": "gets the others' updates and averages them itself",
    "local": "clients send nothing", "centralised": "all data in one place",
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_it_can_protect_and_those_that_it_cannot(method: str) -> None:
    assert isinstance(made(method, config=PrivacyConfig()).combine, type(build(MethodConfig(name=method)).combine))
    if method not in REFUSED:
        assert isinstance(made(method).combine, Noisy)
        return
    with pytest.raises(
        ConfigError, match=rf"^privacy\.noise_multiplier: .*{REFUSED[method]}.*(leave it out|use fedit)"
    ):
        made(method)


def test_in_turn_there_is_nothing_to_hide_among() -> None:
    in_turn = build(MethodConfig(name="fedit", turns=2))
    with pytest.raises(ConfigError, match=r"^privacy\.noise_multiplier: .*train in 2 turns.*set method.turns to 1"):
        private(in_turn, ON, up_codec(CODECS["fp32"], 3), 10, 4)


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


def test_a_delta_that_gives_somebody_away_and_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.delta: with 0\.1 one of 10 clients"):
        made(config=ON.model_copy(update={"delta": 0.1}))
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'capfl\[privacy\]'"):
        made()

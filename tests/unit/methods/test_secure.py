"""What secure aggregation can be had with."""

from __future__ import annotations

import pytest
import torch

from capfl.config.privacy import PrivacyConfig
from capfl.config.schema import CodecConfig, FederationConfig, MethodConfig
from capfl.errors import ConfigError
from capfl.methods import METHODS, Method, build
from capfl.methods.private import private
from capfl.methods.secure import NoisySum, SecureMean, refuse_few, secure
from capfl.wire import up_codec
from fake import initial
from masked import LYING, ON, SKIP, TERNARY, ids, noisy, steps


def made(
    method: str = "fedit", privacy: PrivacyConfig = ON, federation: FederationConfig = SKIP, **codec: object
) -> Method:
    config = CodecConfig(**codec)  # type: ignore[arg-type]
    own = MethodConfig(name=method, turns=1 if method == "ca-pfl" else None)
    return secure(build(own), privacy, federation, up_codec(config, 3))


# -- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "ca-pfl": "clients of ca-pfl tell the server what their data are like",
    "flexlora": "more than add a mean of changes",
    "lora-fair": "more than add a mean of changes", "fedex-lora": "gets the others' updates and averages them itself",
    "local": "clients send nothing", "centralised": "all data in one place",
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_it_can_be_had_with(method: str) -> None:
    assert not isinstance(made(method, PrivacyConfig()).combine, SecureMean)
    if method not in REFUSED:
        assert isinstance(made(method).combine, SecureMean)
        return
    with pytest.raises(ConfigError, match=rf"^privacy\.secure_aggregation: .*{REFUSED[method]}.*(leave it out|use)"):
        made(method)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"values": "fp32"}, "fp32 are not whole numbers.*use codec.values = ternary, 2bit"),
        ({"values": "bf16"}, "bf16 are not whole numbers"),
        ({"mask": "top", "compensation": "off"}, "every client sends different elements.*use codec.mask = random"),
        ({"compensation": "feedback"}, "does not know which rest to carry over; use codec.compensation"),
        ({"federation": FederationConfig(robust="clip")}, "robust = clip compares single changes.*leave one of them"),
    ],
)
def test_settings_that_it_cannot_be_had_with(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^privacy\.secure_aggregation: .*{reason}"):
        made(**settings)  # type: ignore[arg-type]
    made(mask="top", density=1, compensation="off")


def test_with_noise_of_the_clients_own() -> None:
    """The server adds none then. The fewest whose sum it can learn have enough, whether it lies or not."""
    method = made(privacy=noisy())
    assert private(method, noisy(), up_codec(TERNARY, 3), 30, 30) is method
    with pytest.raises(ConfigError, match=r"^privacy\.delta: .* 100000 clients"):
        private(method, noisy(), up_codec(TERNARY, 3), 100_000, 30)
    honest, lying = method.combine, made(privacy=noisy(LYING)).combine
    assert isinstance(honest, NoisySum)
    assert isinstance(lying, NoisySum)
    assert [(honest.fewest(n), honest.counted(n), lying.counted(n)) for n in (3, 4, 7, 30)] == [
        (3, 3, 3), (3, 3, 3), (5, 5, 5), (21, 21, 18)
    ]  # fmt: skip
    assert honest.noise == lying.noise == noisy().of_clients
    peers = MethodConfig(name="ca-pfl", turns=1, peers=dict.fromkeys(ids(3), "a"))
    with pytest.raises(ConfigError, match=r"^privacy\.noise_multiplier: clients of ca-pfl send more than .*use fedit"):
        secure(build(peers), noisy(), SKIP, up_codec(TERNARY, 3))


def test_in_turn_and_of_two_there_is_nothing_to_hide_among() -> None:
    with pytest.raises(ConfigError, match=r"^privacy\.secure_aggregation: .*train in 2 turns.*set method.turns to 1"):
        secure(build(MethodConfig(name="fedit", turns=2)), ON, SKIP, up_codec(TERNARY, 3))
    refuse_few(made(), ids(3), 3)
    refuse_few(build(MethodConfig(name="fedit")), ids(1), 1)
    with pytest.raises(ConfigError, match=r"2 clients take part in a round.*at least 3 clients"):
        refuse_few(made(), ids(3), 2)


PEERS = {"c00": "a", "c01": "a", "c02": "a", "c03": "b", "c04": "b"}


def of_groups(peers: dict[str, str], turns: int = 1) -> Method:
    own = MethodConfig(name="ca-pfl", turns=turns, peers=peers)
    return secure(build(own), ON, SKIP, up_codec(TERNARY, 3))


def test_ca_pfl_has_it_in_groups_of_three_that_are_given_and_train_together() -> None:
    method = of_groups(PEERS)
    assert isinstance(method.combine, SecureMean)
    with pytest.raises(ConfigError, match=r"ca-pfl train in 6 turns.*set method\.turns to 1"):
        of_groups(PEERS, 6)
    with pytest.raises(ConfigError, match=r"c03 and c04 alone in group 'b'.*put at least 3 .*or leave both out"):
        refuse_few(method, ids(5), 5)
    three = of_groups(dict.fromkeys(ids(3), "a"))
    refuse_few(three, ids(5), 5)  # two are alone
    with pytest.raises(ConfigError, match=r"fraction could take two of a group.*to 1$"):
        refuse_few(three, ids(5), 4)
    with pytest.raises(ConfigError, match="no group of at least 3"):
        refuse_few(of_groups({"c00": "a"}), ids(5), 5)


def test_a_servers_step_is_longer_also_for_a_sum() -> None:
    doubled = secure(build(MethodConfig(name="fedit", server_step=2.0)), ON, SKIP, up_codec(TERNARY, 3))
    fold = doubled.combine.start(initial(), 1)
    fold.add(steps("c01", 1), 3)
    for name, t in fold.value().items():
        torch.testing.assert_close(t, initial()[name] + 2 * steps("c01", 1)[name])

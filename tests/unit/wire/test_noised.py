"""Changes with noise as whole numbers: their bytes, what they sum to, and what is bounded."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from adapters import SMALL, normal
from capfl import adapter as algebra
from capfl.config.schema import CodecConfig
from capfl.errors import WireError
from capfl.maths.discrete import discrete_gaussian
from capfl.maths.masks import Whole
from capfl.rng import Draw, stream
from capfl.types import Adapter
from capfl.wire import noised as module
from capfl.wire import up_codec
from capfl.wire.noised import Noised
from capfl.wire.secure import Masked, encode_masked

TINY: Adapter = {"q.A": torch.zeros(1, 4), "q.B": torch.zeros(2, 1)}
CHANGE: Adapter = {"q.A": torch.tensor([[1.0, 2.0, -3.0, 5.0]]), "q.B": torch.tensor([[0.5], [-0.25]])}
DENSE = CodecConfig(values="4bit", density=1, compensation="off")


def made(template: Adapter = TINY, codec: CodecConfig = DENSE, clip: float = 1.0, z: float = 1.0, n: int = 3) -> Noised:
    return Noised(up_codec(codec, 3), template, template, 1, n, clip, z, 3)


def draw(client: str, round: int = 1) -> Draw:
    return stream(7, "privacy", round, client).bytes


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise, to see what is under it."""
    monkeypatch.setattr(module, "discrete_gaussian", lambda n, variance, draw: np.zeros(n, np.int64))


def summed(noised: Noised, *wholes: Whole) -> Whole:
    total = wholes[0]
    for one in wholes[1:]:
        total = total.plus(one)
    return total


def test_a_client_by_hand() -> None:
    """S = 8 root 6 = 19.6, and the change has norm 6.2694: it is (3.1256, 6.2512, -9.3768, 15.628, 1.5628, -0.7814)."""
    noised, clipped = made(), np.array([3.1256, 6.2512, -9.3768, 15.6280, 1.5628, -0.7814])
    assert noised.width == 10  # 3 * 20 + 10 * 20.16 = 262 to both sides take 525 numbers
    found = noised.whole(CHANGE, 1.5, 6, draw=draw("a"))
    bits = draw("a")
    up = (np.frombuffer(bits(8 * 6), "<u8") >> 11) * 2.0**-53 < clipped - np.floor(clipped)
    expected = np.floor(clipped).astype(int) + up + discrete_gaussian(6, noised.grid.variance, bits)
    assert found.values.tolist() == (expected % 2**noised.width).tolist()
    assert found.values.tolist() == [1012, 14, 3, 33, 1003, 1017]
    assert not len(found.numbers)


def test_the_bytes_of_an_update() -> None:
    noised = made(SMALL, CodecConfig(values="2bit", density=0.5))
    whole = noised.whole(normal(1), 1.5, 6, draw=draw("a"))
    blob = encode_masked(Masked(5, "a", whole), up_codec(CodecConfig(values="2bit"), 3), b"schema 8")
    assert hashlib.sha256(blob).hexdigest()[:16] == "7baa9d1767f9001a"


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("values", ["ternary", "4bit", "8bit"])
def test_without_noise_the_mean_is_that_of_clipped_changes(values: str) -> None:
    codec = CodecConfig(values=values, density=1, compensation="off")  # type: ignore[arg-type]
    noised = made(SMALL, codec, clip=3.0)
    near, far = (algebra.scaled(normal(k), length / algebra.norm(normal(k))) for k, length in ((1, 2.0), (2, 700.0)))
    nothing = algebra.zeros(SMALL)
    total = summed(noised, *(noised.whole(c, 1.0, 1, draw=draw(str(k))) for k, c in enumerate((near, far, nothing))))
    mean = noised.mean(total, 3)
    step = 3.0 / noised.grid.steps
    for name, t in mean.change.items():
        expected = (near[name] + far[name] * 3.0 / 700.0) / 3
        torch.testing.assert_close(t, expected, atol=2 * step / 3, rtol=0)
    assert (mean.loss, mean.steps, len(mean.ranks)) == (None, None, 0)


@pytest.mark.usefixtures("silent")
def test_one_client_changes_the_sum_by_no_more_than_is_counted() -> None:
    """Also where rounding has it longer than the clip, as halves do, and where one value has all of it."""
    noised = made(SMALL, CodecConfig(density=1, compensation="off"))
    size = algebra.size(SMALL)
    even = {name: torch.full_like(t, 0.5 / math.sqrt(size)) for name, t in SMALL.items()}
    peak = algebra.zeros(SMALL) | {"q.A": torch.tensor([[0.0, -7.0, 0.0], [0.0, 0.0, 0.0]])}
    lengths = []
    for k, change in enumerate((even, algebra.scaled(even, 2.0), algebra.scaled(even, 1e20), peak)):
        whole = noised.whole(change, 1.0, 1, draw=draw(str(k)))
        numbers = whole.values.astype(np.int64)
        numbers -= (numbers >= 2 ** (whole.width - 1)) * 2**whole.width
        lengths.append(int(numbers @ numbers))
    assert max(lengths) <= noised.grid.longest
    assert lengths[0] > 1.5 * size / 4  # longer than it was


def test_the_noise_of_a_sum_has_the_variance_that_epsilon_is_counted_by() -> None:
    """z = 2 times what a client can change, of three clients; and on every value that travels."""
    noised, nothing = made(SMALL, clip=0.5, z=2.0), algebra.zeros(SMALL)
    drawn = []
    for round in range(100):
        wholes = (noised.whole(nothing, 1.0, 1, draw=draw(client, round)) for client in "abc")
        mean = noised.mean(summed(noised, *wholes), 3).change
        drawn.append(torch.cat([t.flatten() for t in mean.values()]))
    assert bool((torch.stack(drawn) != 0).any(dim=0).all())
    deviation = float(torch.stack(drawn).double().std()) * 3
    expected = 2.0 * 0.5 * math.sqrt(noised.grid.longest) / noised.grid.steps
    assert deviation == pytest.approx(expected, rel=4 / math.sqrt(2 * 100 * noised.n_values))
    assert 1 < expected < 1.02  # z C, and a little for rounding


def test_a_sum_that_no_clients_have_is_refused() -> None:
    noised = made(SMALL, n=4)
    whole = noised.whole(normal(1), 1.0, 1, draw=draw("a"))
    noised.mean(whole, 3)
    values = whole.values.copy()
    values[5] = 2 ** (whole.width - 1)
    with pytest.raises(WireError, match=r"a sum of 3 clients, with its noise, has \d+ where \d+ is the most"):
        noised.mean(Whole(values, whole.width, whole.numbers), 3)
    values = np.full_like(whole.values, noised.grid.most(3) - 1)
    with pytest.raises(WireError, match="a sum of 3 clients has norm"):
        noised.mean(Whole(values, whole.width, whole.numbers), 3)
    with pytest.raises(WireError, match="other numbers"):
        noised.mean(Whole(whole.values, whole.width, np.zeros(1, np.uint32)), 3)


def test_a_value_that_is_not_finite_and_noise_that_no_number_has_room_for() -> None:
    with pytest.raises(WireError, match="not finite"):
        made().whole(CHANGE | {"q.A": torch.full((1, 4), math.nan)}, 1.0, 1)
    with pytest.raises(WireError, match=r"a sum of 3 clients takes \d+ bits a value, 31 at most"):
        made(z=1e9)
    with pytest.raises(WireError, match=r"each client's noise would be .* steps, and there is memory for 131072"):
        made(z=1e5)

"""runtime.clients_per_pass in a whole run: the same clients learn the same, and what cannot share a pass is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from capfl.config import load_config
from capfl.config.schema import MethodConfig
from capfl.errors import ConfigError
from capfl.federation import check_passes
from capfl.methods import build
from support import tiny_run

SETTINGS: dict[str, Any] = {
    "method__name": "ditto", "federation__rounds": 1, "data__items": 20, "data__sites": 3, "codec__values": "fp32",
    "codec__density": 1.0, "train__steps": 2, "evaluation__every": 0,
}  # fmt: skip


def adapters(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {str(path.relative_to(run)): load_file(path) for path in sorted(run.glob("adapters/**/*.safetensors"))}


def test_a_run_with_two_clients_in_a_pass_ends_as_one_with_one(tmp_path: Path) -> None:
    places = {n: tmp_path / str(n) for n in (1, 2)}
    for n, place in places.items():
        tiny_run(place, runtime__clients_per_pass=n, **SETTINGS)
    one, *others = (adapters(place) for place in places.values())
    assert len(one) == 4  # everybody's, and each client's
    for other in others:
        assert other.keys() == one.keys()
        for path, adapter in one.items():
            for name, t in adapter.items():
                torch.testing.assert_close(other[path][name], t, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora.dropout": 0.1}, "lora.dropout draws for one client at a time"),
        ({"method.name": "fedex-lora"}, "the base that clients of fedex-lora train on has a patch"),
        ({"model.quantization": "8bit"}, "8-bit products treat large inputs of all rows together"),
        ({"runtime.compile": True}, "runtime.compile makes graphs of one adapter"),
        ({"remote": True}, "every site has a process and a base of its own"),
    ],
)
def test_what_cannot_share_a_pass_is_said_with_the_remedy(settings: dict[str, Any], message: str) -> None:
    remote = settings.pop("remote", False)
    method = build(MethodConfig(name=settings.get("method.name", "fedit")))
    unused: Any = None  # the model is asked last
    config = load_config(None, settings | {"runtime.clients_per_pass": 4})
    with pytest.raises(ConfigError, match=f"runtime.clients_per_pass: {message}; set runtime.clients_per_pass = 1"):
        check_passes(config, [method], unused, remote)
    check_passes(load_config(None, settings), [method], unused, remote)

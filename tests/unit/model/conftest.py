"""The tiny model, adapted in any way, and prompts ready for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from capfl import adapter as algebra
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.model import tiny
from capfl.model.base import load_base
from capfl.model.lora import AdaptedModel
from capfl.types import Adapter

Adapt = Callable[..., AdaptedModel]

QV = ("q_proj", "v_proj")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def adapt() -> Adapt:
    """An adapted tiny model, one for each setting of the section lora: values of its adapter are whoever wrote last's.

    ``fresh`` gives one that nobody else has, for tests that change the base.
    """
    made: dict[str, AdaptedModel] = {}

    def _adapt(dtype: str = "float32", fresh: bool = False, **settings: object) -> AdaptedModel:
        config = LoraConfig.model_validate({"rank": 2, "alpha": 8.0, "layers": "top:2", "targets": QV} | settings)
        key = f"{dtype} {config}"
        if fresh or key not in made:
            model = AdaptedModel(load_base(ModelConfig(path="tiny", device="cpu", dtype=dtype)), config)
            return model if fresh else made.setdefault(key, model)
        return made[key]

    return _adapt


@pytest.fixture(scope="session")
def wander() -> Callable[[AdaptedModel], Adapter]:
    """An adapter as training could have left it: no factor is zero."""

    def _wander(model: AdaptedModel, seed: int = 0) -> Adapter:
        generator = torch.Generator().manual_seed(seed)
        return {name: 0.3 * torch.randn(p.shape, generator=generator) for name, p in model.parameters.items()}

    return _wander


@pytest.fixture(scope="session")
def merged() -> Callable[..., LlamaForCausalLM]:
    """The tiny model as transformers has it, with an adapter merged into its weights."""

    @torch.no_grad()
    def _merged(adapter: Adapter, scale: float = 4.0) -> LlamaForCausalLM:
        model = tiny.model()
        for module, down, up in algebra.factors(adapter):
            model.get_submodule(module).weight += scale * up @ down
        return model

    return _merged

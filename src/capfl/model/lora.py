"""One adapter injected into the frozen base, written and read in place. The only user of PEFT's injection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import peft
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from capfl import adapter as algebra
from capfl.config.schema import LoraConfig
from capfl.errors import ModelError
from capfl.model.base import Base
from capfl.model.layers import adapted_layers, chosen_layers, decoder_layers
from capfl.model.patch import Patch
from capfl.types import Adapter

_NAME = "capfl"


class AdaptedModel:
    """A frozen base with one LoRA adapter whose values are swapped from client to client.

    The forward pass is cut in two. ``lower`` runs the layers below the lowest adapted one: its output never
    changes, so callers may keep it. ``logits`` runs the rest and computes logits at the asked positions only. Where
    these would be too many numbers, ``states`` runs the layers alone, and ``head`` makes logits of some positions.
    Rows are padded on the right and no mask is passed: under causal attention no position sees what follows
    it, so padding cannot change a result.
    """

    def __init__(self, base: Base, config: LoraConfig) -> None:
        self.base = base
        self.config = config
        self.layers = decoder_layers(base.module)
        self.lowest = min(chosen_layers(config.layers, len(self.layers)))
        targets = adapted_layers(base.module, config)
        self.targets = list(targets)
        self._transposed = isinstance(base.module.get_submodule(self.targets[0]), Conv1D)  # GPT-2 and its kin
        peft.inject_adapter_in_model(self.peft_config(), base.module, adapter_name=_NAME)
        self.parameters = dict(self._find_parameters())
        scale = config.alpha / config.rank
        self._patches = {
            f"{target}.W": Patch(base.module.get_submodule(target), scale, self._transposed) for target in targets
        }
        self._patch_shapes = {f"{target}.W": (d_out, d_in) for target, (d_in, d_out) in targets.items()}
        self.train(False)  # PEFT injects modules with their dropout on
        self._in_tuple = False  # do the layers return their hidden states in a tuple?
        self.has_head = False  # do ``states`` and ``head`` together give what ``logits`` does?
        self.check_split()

    def peft_config(self) -> peft.LoraConfig:
        """The adapter in PEFT's words; also what is saved beside its weights."""
        return peft.LoraConfig(
            r=self.config.rank,
            lora_alpha=cast(int, self.config.alpha),
            lora_dropout=self.config.dropout,
            target_modules=list(self.targets),
            fan_in_fan_out=self._transposed,
            base_model_name_or_path=self.base.name,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )

    @property
    def vocabulary(self) -> int:
        """The number of logits at a position."""
        return int(cast(Any, self.base.module).config.get_text_config().vocab_size)

    # -- the adapter's values --------------------------------------------------------------------

    def initial_adapter(self, seed: int) -> Adapter:
        """A from Kaiming-uniform with PEFT's bound 1/sqrt(d_in), B = 0: the base model itself."""
        return algebra.drawn({name: tuple(p.shape) for name, p in self.parameters.items()}, seed)

    def write(self, adapter: Adapter) -> None:
        """Copy values into the live factors, and patch the base if the adapter does; it is clean again otherwise.

        Raises:
            ModelError: a tensor is missing, unknown or of another shape; nothing has been written then.
        """
        expected = {name: tuple(p.shape) for name, p in self.parameters.items()}
        expected |= {name: shape for name, shape in self._patch_shapes.items() if name in adapter}
        found = {name: tuple(t.shape) for name, t in adapter.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ModelError(
                    f"adapter tensor {name!r}: shape {found.get(name, 'missing')}, the model expects "
                    f"{expected.get(name, 'no such tensor')}; check rank, targets and layers"
                )
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(adapter[name])
        for name, patch in self._patches.items():
            patch.write(adapter.get(name))

    def _find_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        modules = dict(self.base.module.named_modules())
        for target in self.targets:
            for factor in ("A", "B"):
                weight = getattr(modules[target], f"lora_{factor}")[_NAME].weight
                weight.data = weight.data.to(torch.float32)  # a half-precision base still trains in float32
                weight.requires_grad_(True)
                yield f"{target}.{factor}", weight

    def train(self, on: bool, checkpointing: bool = False) -> None:
        """Switch the adapter's dropout; the base has none that is ever on.

        Args:
            checkpointing: from here on a layer keeps only its input, and is computed again in the backward pass.
        """
        self._checkpointing = checkpointing
        for target in self.targets:
            self.base.module.get_submodule(target).get_submodule("lora_dropout").train(on)

    # -- the forward pass in two parts --------------------------------------------------------------

    @torch.no_grad()
    def lower(self, ids: Tensor, layer: int | None = None) -> Tensor:
        """Hidden states (batch, tokens, hidden) that enter a layer, by default the lowest adapted one."""

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        handle = self.layers[self.lowest if layer is None else layer].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.base.module(input_ids=ids, use_cache=False)
        except _Reached as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise ModelError("the base model ran through without using its own decoder layers")

    def logits(self, ids: Tensor, positions: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits (n, vocabulary) at flat positions (n,) of ids (batch, tokens).

        Args:
            hidden: what ``lower`` gave for these ids; without it the whole base runs.
        """

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0].flatten(0, 1)[positions].unsqueeze(0), *args[1:])

        head = cast(Any, self.base.module).get_output_embeddings()
        handle = head.register_forward_pre_hook(keep)
        try:
            with self._replaced_layers(hidden):
                return cast(Tensor, self.base.module(input_ids=ids, use_cache=False).logits[0])
        finally:
            handle.remove()

    def states(self, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Hidden states (batch, tokens, hidden) that leave the last layer. Arguments as for ``logits``."""

        def stop(module: nn.Module, args: object, output: Any) -> None:
            self._in_tuple = isinstance(output, tuple)
            raise _Reached(output[0] if self._in_tuple else output)

        handle = self.layers[-1].register_forward_hook(stop)
        try:
            with self._replaced_layers(hidden):
                self.base.module(input_ids=ids, use_cache=False)
        except _Reached as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise ModelError("the base model ran through without using its own decoder layers")

    def head(self, states: Tensor) -> Tensor:
        """Logits (n, vocabulary) of states (n, hidden) that have left the last layer: norm, head, and what follows."""
        ids = torch.zeros(len(states), 1, dtype=torch.int64, device=states.device)
        with self._replaced_layers(states.unsqueeze(1), len(self.layers)):
            return cast(Tensor, self.base.module(input_ids=ids, use_cache=False).logits[:, 0])

    @contextmanager
    def _replaced_layers(self, hidden: Tensor | None, upto: int | None = None) -> Iterator[None]:
        """With ``hidden``, the lower layers pass their input on and the last of them hands out ``hidden``.

        Under checkpointing the others keep their input and nothing of what they compute, and compute it again in the
        backward pass, with the same random numbers.

        Args:
            upto: the first layer that is not a lower one; by default the lowest adapted one.
        """
        before = [vars(layer).get("forward") for layer in self.layers]
        lowest = (self.lowest if upto is None else upto) if hidden is not None else 0
        for i, layer in enumerate(self.layers):
            if i < lowest:
                layer.forward = partial(self._skipped, hidden if i == lowest - 1 else None)
            elif self._checkpointing:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer, forward in zip(self.layers, before, strict=True):
                vars(layer).pop("forward", None)
                if forward is not None:
                    layer.forward = forward

    def _skipped(self, hidden: Tensor | None, hidden_states: Tensor, *_: object, **__: object) -> object:
        """In place of a layer's ``forward``."""
        out = hidden_states if hidden is None else hidden
        return (out,) if self._in_tuple else out

    @torch.no_grad()
    def check_split(self) -> None:
        """Compare the passes in parts with the model's own on a short probe.

        Raises:
            ModelError: they differ, so this architecture cannot be cut below its lowest adapted layer.
        """
        ids = torch.arange(1, 9, device=self.base.device).reshape(1, 8)
        positions = torch.tensor([3, 7], device=self.base.device)
        states = self.states(ids)
        whole = self.base.module(input_ids=ids, use_cache=False).logits[0, positions]

        def differs(split: Tensor) -> bool:
            return not torch.allclose(whole, split, rtol=1e-2, atol=1e-3 * float(whole.abs().max()))

        self.has_head = not differs(self.head(states[0, positions]))
        if self.lowest and differs(split := self.logits(ids, positions, self.lower(ids))):
            raise ModelError(
                f"lora.layers: {self.base.name} cannot be cut below layer {self.lowest} "
                f"(logits differ by {float((whole - split).abs().max()):.3g}); use lora.layers = all"
            )


class _Reached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden

"""One adapter injected into the frozen base, written and read in place. The only user of PEFT's injection."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import peft
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from capfl import adapter as algebra
from capfl.config.schema import ALL_LINEAR, LoraConfig
from capfl.errors import ConfigError, ModelError
from capfl.model.base import Base
from capfl.model.layers import Shapes, adapted_layers, decoder_layers, fits, lowest_layer, named_layers, remarks
from capfl.model.patch import Patch
from capfl.model.probe import LENGTH, probe_ids
from capfl.types import Adapter

_NAME = "capfl"


class AdaptedModel:
    """A frozen base with one LoRA adapter whose values are swapped from client to client.

    The forward pass is cut in two. ``lower`` runs the layers below the lowest adapted one: its output never
    changes, so callers may keep it. ``logits`` runs the rest and computes logits at the asked positions only. Where
    these would be too many numbers, ``states`` runs the layers alone, and ``head`` makes logits of some positions.
    Rows are padded on the right and no mask is passed: under causal attention no position sees what follows
    it, so padding cannot change a result.

    Attributes:
        targets: full names of the adapted linear layers.
        lowest: number of the lowest adapted layer; 0 where the model cannot be cut there, and always runs whole.
        remarks: what its user should be told of what is adapted.

    Args:
        targets: full names of the linear layers to adapt, in place of what ``config`` says of layers and targets.

    Raises:
        ConfigError: a layer or a target that the model does not have.
        ModelError: its decoder layers cannot be found, or a target is never called.
    """

    def __init__(self, base: Base, config: LoraConfig, targets: Sequence[str] | None = None) -> None:
        self.base = base
        self.config = config
        self.layers = decoder_layers(base.module)
        self._in_tuple = 0  # entries of the tuple in which layers return their hidden states; 0: in none
        shapes = adapted_layers(base.module, config) if targets is None else named_layers(base.module, targets)
        self.remarks = remarks(base.module, config) if targets is None else []
        shapes = self._without_idle(shapes)
        self.targets = list(shapes)
        self.lowest = lowest_layer(base.module, self.targets)
        transposed = {name: isinstance(base.module.get_submodule(name), Conv1D) for name in self.targets}
        self._transposed = any(transposed.values())  # GPT-2 and its kin
        peft.inject_adapter_in_model(self.peft_config(), base.module, adapter_name=_NAME)
        self.halves: dict[str, nn.Module] = {}  # by the names of their weights, the two layers of every module
        self.parameters = dict(self._find_parameters())
        scale = config.alpha / config.rank
        self._patches = {
            f"{target}.W": Patch(base.module.get_submodule(target), scale, transposed[target]) for target in shapes
        }
        self._patch_shapes = {f"{target}.W": (d_out, d_in) for target, (d_in, d_out) in shapes.items()}
        self.train(False)  # PEFT injects modules with their dropout on
        self._compiled: list[Callable[..., object]] = []  # ``forward`` of every layer from the lowest adapted one up
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
            ModelError: as ``check``; nothing has been written then.
        """
        self.check(adapter)
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(adapter[name])
        for name, patch in self._patches.items():
            patch.write(adapter.get(name))

    def check(self, adapter: Adapter) -> None:
        """Raises ModelError: a tensor is missing, unknown or of another shape."""
        expected = {name: tuple(p.shape) for name, p in self.parameters.items()}
        expected |= {name: shape for name, shape in self._patch_shapes.items() if name in adapter}
        found = {name: tuple(t.shape) for name, t in adapter.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ModelError(
                    f"adapter tensor {name!r}: shape {found.get(name, 'missing')}, the model expects "
                    f"{expected.get(name, 'no such tensor')}; check rank, targets and layers"
                )

    def _find_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        modules = dict(self.base.module.named_modules())
        for target in self.targets:
            if not hasattr(modules[target], "lora_A"):
                raise ModelError(f"lora.targets: PEFT does not adapt {target} in {self.base.name}; leave it out")
            for factor in ("A", "B"):
                self.halves[f"{target}.{factor}"] = half = getattr(modules[target], f"lora_{factor}")[_NAME]
                weight = half.weight
                weight.data = weight.data.to(torch.float32)  # a half-precision base still trains in float32
                weight.requires_grad_(True)
                yield f"{target}.{factor}", weight

    def train(self, on: bool, checkpointing: bool = False) -> None:
        """Switch the adapter's dropout; the base has none that is ever on.

        Args:
            checkpointing: from here on a layer keeps only its input, and is computed again in the backward pass.
        """
        self._training, self._checkpointing = on, checkpointing
        for target in self.targets:
            self.base.module.get_submodule(target).get_submodule("lora_dropout").train(on)

    def compile(self) -> None:
        """Compile the layers from the lowest adapted one up, for training; scores and answers are made without.

        Once for batches of all shapes: a graph for each shape would be made again for every new length.

        Raises:
            ConfigError: they cannot be compiled here, for want of a C++ compiler for instance.
        """
        self._compiled = [torch.compile(layer.forward, dynamic=True) for layer in self.layers[self.lowest :]]
        rows, length = 3, 13  # what no width of a model is: a graph of a length that is one would be for it alone
        ids = probe_ids(self.base.module, rows * length).reshape(rows, length).to(self.base.device)
        self.train(True)
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                # the compiler looks at the gradient of every tensor that it meets, of those that have none as well
                warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
                hidden = self.lower(ids) if self.lowest else None
                self.logits(ids, torch.arange(length, device=ids.device), hidden).sum().backward()
        except Exception as error:  # whatever torch's compilers raise
            self._compiled = []
            lines = str(error).strip().splitlines() or [""]
            raise ConfigError(
                f"runtime.compile: torch.compile fails here ({type(error).__name__}: {lines[0]}); install a C++ "
                "compiler such as g++ if there is none, or leave it out"
            ) from error
        finally:
            self.train(False)
            for p in self.parameters.values():
                p.grad = None

    # -- the forward pass in two parts --------------------------------------------------------------

    @torch.no_grad()
    def lower(self, ids: Tensor, layer: int | None = None) -> Tensor:
        """Hidden states (batch, tokens, hidden) that enter a layer, by default the lowest adapted one."""

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(_first_tensor(args, kwargs))

        at = self.layers[self.lowest if layer is None else layer]
        return self._reached(ids, at.register_forward_pre_hook(stop, with_kwargs=True))

    def _reached(self, ids: Tensor, handle: RemovableHandle) -> Tensor:
        """What the hook of that handle stops the forward pass with; the hook is removed."""
        try:
            self.base.module(input_ids=ids, use_cache=False)
        except _Reached as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise ModelError("the base model ran through without using its own decoder layers")

    def entering(self, ids: Tensor, layer: int) -> Tensor:
        """As ``lower``; where several streams of states go from layer to layer, their mean."""
        hidden = self.lower(ids, layer)
        if hidden.ndim == 3:
            return hidden
        return hidden.mean(0 if hidden.shape[1:3] == ids.shape else 2)

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
            raise _Reached(output[0] if isinstance(output, tuple | list) else output)

        with self._replaced_layers(hidden):
            return self._reached(ids, self.layers[-1].register_forward_hook(stop))

    def head(self, states: Tensor) -> Tensor:
        """Logits (n, vocabulary) of states (n, hidden) that have left the last layer: norm, head, and what follows."""
        ids = torch.zeros(len(states), 1, dtype=torch.int64, device=states.device)
        with self._replaced_layers(states.unsqueeze(1), len(self.layers)):
            return cast(Tensor, self.base.module(input_ids=ids, use_cache=False).logits[:, 0])

    @contextmanager
    def _replaced_layers(self, hidden: Tensor | None, upto: int | None = None) -> Iterator[None]:
        """With ``hidden``, each of the lower layers hands it out, whichever of them the model calls last.

        Under checkpointing the others keep their input and nothing of what they compute, and compute it again in the
        backward pass, with the same random numbers.

        Args:
            upto: the first layer that is not a lower one; by default the lowest adapted one.
        """
        before = [vars(layer).get("forward") for layer in self.layers]
        lowest = (self.lowest if upto is None else upto) if hidden is not None else 0
        for i, layer in enumerate(self.layers):
            if hidden is not None and i < lowest:
                layer.forward = partial(self._skipped, hidden)
                continue
            if self._compiled and self._training and i >= self.lowest:
                layer.forward = self._compiled[i - self.lowest]
            if self._checkpointing:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer, forward in zip(self.layers, before, strict=True):
                vars(layer).pop("forward", None)
                if forward is not None:
                    layer.forward = forward

    def _skipped(self, hidden: Tensor, *_: object, **__: object) -> object:
        """Stands in for a layer's ``forward``: hands the hidden states on."""
        return (hidden, *[None] * (self._in_tuple - 1)) if self._in_tuple else hidden

    def _without_idle(self, shapes: Shapes) -> Shapes:
        """The layers that are to be adapted without those that the base never calls on text, which ``remarks`` name.

        An adapter there would change nothing. Experts may be called for other texts.

        Raises:
            ModelError: one of them is named in ``lora.targets``, or nothing is left.
        """
        called = self._called(shapes)
        idle = [name for name in shapes if name not in called and ".experts." not in name]
        named = [name for name in idle if any(t != ALL_LINEAR and fits(name, t) for t in self.config.targets)]
        if named or len(idle) == len(shapes):
            raise ModelError(
                f"lora.targets: {self.base.name} never uses {(named or idle)[0]} on text, so an adapter there "
                "has no effect; name other targets or layers"
            )
        if idle:
            self.remarks.append(f"lora.targets: {', '.join(idle)}: left as before, because texts never pass them")
        return {name: shape for name, shape in shapes.items() if name not in idle}

    @torch.no_grad()
    def _called(self, names: Iterable[str]) -> set[str]:
        """Which modules the base calls on a short probe. Notes what its layers return, too."""
        called: set[str] = set()

        def watch(module: nn.Module, args: object, output: object) -> None:
            self._in_tuple = len(output) if isinstance(output, tuple | list) else 0

        handles = [self.layers[0].register_forward_hook(watch)]
        for name in names:
            module = self.base.module.get_submodule(name)
            handles.append(module.register_forward_hook(partial(_note, called, name)))
        self.base.module(input_ids=self.probe(), use_cache=False)
        for handle in handles:
            handle.remove()
        return called

    def probe(self) -> Tensor:
        """Ids (2, LENGTH) to try the model on."""
        return probe_ids(self.base.module, 2 * LENGTH).reshape(2, LENGTH).to(self.base.device)

    @torch.no_grad()
    def check_split(self) -> None:
        """Compare passes over some positions and in parts with the model's own, on a short probe.

        A model that cannot be cut below its lowest adapted layer is not cut: some hand keys and values, or a state,
        from layer to layer beside the hidden states.

        Raises:
            ModelError: logits cannot be had at some positions alone, or adapters get no gradient.
        """
        ids = self.probe()
        positions = torch.tensor([3, LENGTH - 1, 2 * LENGTH - 1], device=ids.device)
        own: Tensor = self.base.module(input_ids=ids, use_cache=False).logits.flatten(0, 1)[positions]
        with torch.enable_grad():
            whole = self.logits(ids, positions)
        if not close(own, whole):
            raise ModelError(f"model.path: {self.base.name} makes no logits of single positions; give another model")
        if not whole.requires_grad:
            raise ModelError(
                f"model.path: {self.base.name} passes no gradient on to adapters, so that they cannot be trained; give "
                "another model"
            )
        self.has_head = self._has_head(ids, positions, own)
        if self.lowest and not self._can_be_cut(ids, positions, own):
            self.remarks.append(
                f"{self.base.name} cannot be cut below layer {self.lowest}, the lowest adapted one: hidden states are "
                "not kept, and every pass runs all layers"
            )
            self.lowest = 0

    def _has_head(self, ids: Tensor, positions: Tensor, own: Tensor) -> bool:
        try:
            states = self.states(ids)
            return states.shape[:-1] == ids.shape and close(own, self.head(states.flatten(0, 1)[positions]))
        except Exception:  # some make more of what leaves the layers than a norm and a head do
            return False

    def _can_be_cut(self, ids: Tensor, positions: Tensor, own: Tensor) -> bool:
        try:
            hidden = self.lower(ids)
            split = self.logits(ids, positions, hidden)
        except Exception:  # whatever an upper layer raises that misses what a lower one would have left it
            return False
        return hidden.ndim == 3 and hidden.shape[:2] == ids.shape and close(own, split)


class _Reached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def close(a: Tensor, b: Tensor) -> bool:
    """Are two passes' logits the same but for rounding?"""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(a.abs().max()))


def _note(called: set[str], name: str, *_: object) -> None:
    called.add(name)


def _first_tensor(args: Sequence[object], kwargs: Mapping[str, object]) -> Tensor:
    """Of a layer's arguments: the hidden states that enter it."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

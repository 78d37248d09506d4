"""State and plans made real on one base model, over and over, without a trace of the one before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from clients.device import Device, host
from clients.model.adapted_linear import adapted
from clients.model.base import Base
from clients.model.heads import RandomFeaturesHead
from clients.model.lower import (
    BELOW,
    BORDER,
    Kept,
    blocks_of,
    border_below,
    entered,
    output_of,
    touched,
)
from strategies.errors import ModelError
from strategies.lora import alpha_of, is_factor, is_merged, merged_keys, num_merged
from strategies.peft_format import parameter_name
from strategies.types import (
    LORA_A,
    LORA_B,
    Dense,
    GroupName,
    GroupPlan,
    LowRank,
    ParamKey,
    Tensors,
)

_ADAPTER = "default"


@dataclass(slots=True)
class AdaptedModel:
    """A base model that becomes base + state, one state after another.

    Low-rank groups are peft LoRA layers, each with the rank of its own tensors; dense parts are
    base value + offset.  Layers are rebuilt only when the adapted modules or their ranks change.
    Every ``apply`` starts from the base's own values, so nothing drifts.  ``touched`` are the
    groups that the state applied last makes anything else of than the base.  ``kept`` is what came
    out of frozen lower parts, by example, for whoever asks again (``model/lower.py``).
    """

    base: Base
    kept: Kept = field(default_factory=Kept)
    touched: frozenset[GroupName] = frozenset()
    _addresses: dict[ParamKey, str] = field(init=False)  # dense parts → parameter name in the base
    _values: dict[ParamKey, Tensor] = field(
        default_factory=dict
    )  # base values of moved dense parts
    _ranks: dict[str, int] = field(default_factory=dict)  # adapted module → rank
    _layers: dict[str, LoraLayer] = field(default_factory=dict)
    _lora: LoraModel | None = None

    def __post_init__(self) -> None:
        self._addresses = addresses_of(self.base)
        self.module.requires_grad_(False)  # noqa: FBT003 - torch

    @property
    def device(self) -> Device:
        """Where the model computes; everything that goes into it must be there."""
        return self.base.device

    @property
    def module(self) -> nn.Module:
        """The model itself, with the adapters of the state applied last."""
        return self.base.module

    def apply(self, tensors: Tensors, scale: float) -> None:
        """Become base + ``tensors``.

        Raises: ModelError for a group the model does not have or that cannot carry LoRA.
        """
        ranks = {
            str(key.group): value.shape[0] for key, value in tensors.items() if key.part == LORA_A
        }
        self.touched = touched(tensors)
        with torch.no_grad():
            self._restore_dense()
            if ranks != self._ranks:
                self._rebuild(ranks, scale)
            for key, value in tensors.items():
                if is_factor(key):
                    self._factor(key).copy_(self.device.tensor(value))
                elif not is_merged(key):
                    self._move(key, self.device.tensor(value))
            self._merge(tensors, scale)
            for layer in self._layers.values():
                layer.scaling[_ADAPTER] = scale

    def trainable(self, groups: Mapping[GroupName, GroupPlan]) -> dict[ParamKey, nn.Parameter]:
        """The parameters ``groups`` trains, in a fixed order; all others are frozen.

        Raises: ModelError for a group that is not there, or a rank other than the applied one.
        """
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)  # noqa: FBT003 - torch
            parameter.grad = None
        chosen = dict[ParamKey, nn.Parameter]()
        for name, plan in sorted(groups.items()):
            chosen |= (
                self._low_rank(name, plan) if isinstance(plan, LowRank) else self._dense(name, plan)
            )
        for parameter in chosen.values():
            parameter.requires_grad_(True)  # noqa: FBT003 - torch
        return chosen

    def read(self, keys: Iterable[ParamKey]) -> dict[ParamKey, NDArray[np.float32]]:
        """Current values as a state holds them: factors as they are, dense parts less the base."""
        found = dict[ParamKey, NDArray[np.float32]]()
        for key in keys:
            if key.part in (LORA_A, LORA_B):
                value = self._factor(key).detach()
            else:
                value = self._parameter(key).detach() - self._base_value(key)
            found[key] = host(value.float()).copy()
        return found

    def base_values(self, groups: Iterable[GroupName]) -> dict[ParamKey, NDArray[np.float32]]:
        """The base's own values of ``groups``, whatever state is applied.

        Raises: ModelError for a group the model does not have.
        """
        wanted = set(groups)
        if unknown := sorted(wanted - {key.group for key in self._addresses}):
            raise ModelError(f"base values of group {unknown[0]!r}, which the model does not have")
        found = dict[ParamKey, NDArray[np.float32]]()
        for key in self._addresses:
            if key.group in wanted:
                value = self._values.get(key)
                value = self._parameter(key).detach() if value is None else value
                found[key] = host(value.float()).copy()
        return found

    @contextmanager
    def in_evaluation(self) -> Iterator[None]:
        """Without dropout; the mode is as it was after."""
        training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(training)

    @property
    def checkpointable(self) -> bool:
        """Whether the model has blocks that can be computed again for their backward pass."""
        return bool(self._blocks())

    def checkpoint(self, *, on: bool) -> None:
        """Keep no activations within blocks while training, or keep them again.

        Raises: ModelError for a model whose blocks cannot be computed again.
        """
        if on and not self.checkpointable:
            kind = type(self.module).__name__
            raise ModelError(
                f"{kind} has no blocks that gradient checkpointing could compute again"
            )
        for block in self._blocks():
            block.gradient_checkpointing = on
            block.__dict__["_gradient_checkpointing_func"] = partial(
                checkpoint, use_reentrant=False
            )

    def _blocks(self) -> list[GradientCheckpointingLayer]:
        modules = self.module.modules()
        return [module for module in modules if isinstance(module, GradientCheckpointingLayer)]

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(n, C) for classification, (n, t, vocabulary) for a causal LM; labels are left out."""
        if self._pooled(inputs):
            return self.answers(inputs[BELOW])
        with entered(self.module, self.base.description, inputs) as fed, self.device.autocast():
            logits: Tensor = self.module(**fed).logits
        return logits

    def answers(self, features: Tensor) -> Tensor:
        """The head's logits (n, C) for pooled features (n, d)."""
        with self.device.autocast():
            logits: Tensor = self.module.get_submodule("classifier")(features)
        return logits

    @property
    def pools(self) -> bool:
        """Whether there are pooled features; a checkpoint's own head keeps them to itself."""
        return hasattr(self.module, "features")

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Pooled features (n, d).

        Raises: ModelError where the checkpoint's own head does the pooling.
        """
        if not self.pools:
            raise ModelError('features need model.pooling = "mean" or "cls"')
        if self._pooled(inputs):
            return inputs[BELOW]
        with entered(self.module, self.base.description, inputs) as fed, self.device.autocast():
            features: Tensor = self.module.features(fed)  # type: ignore[operator]
        return features

    def _pooled(self, inputs: Mapping[str, Tensor]) -> bool:
        border = inputs.get(BORDER)
        return border is not None and int(border) > self.base.description.num_blocks

    def border(self, groups: Collection[GroupName]) -> int:
        """The highest border with none of ``groups`` below it, 0 if there is none."""
        highest = self.base.description.num_blocks + self.pools
        return min(border_below(self.base.description, groups), highest)

    @torch.no_grad()
    def below(self, inputs: Mapping[str, Tensor], border: int) -> Tensor:
        """What comes out at ``border``: hidden states (n, t, d) or, above all blocks, features."""
        description = self.base.description
        if border > description.num_blocks:
            return self.features(inputs)
        with entered(self.module, description, inputs) as fed, self.device.autocast():
            block = blocks_of(self.module, description)[border - 1]
            return output_of(block, partial(self.module, **fed))

    def head_inputs(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the head's last layer multiplies: pooled features (n, d) or random ones (n, M)."""
        features = self.features(inputs)
        head = self.module.classifier
        return head.inputs(features) if isinstance(head, RandomFeaturesHead) else features

    def _restore_dense(self) -> None:
        for key, value in self._values.items():
            self._parameter(key).copy_(value)

    def _move(self, key: ParamKey, offset: Tensor) -> None:
        parameter = self._parameter(key)
        if offset.shape != parameter.shape:
            raise ModelError(
                f"{key} has shape {tuple(offset.shape)}, expected {tuple(parameter.shape)}"
            )
        parameter.copy_(self._base_value(key) + offset)

    def _merge(self, tensors: Tensors, scale: float) -> None:
        """Move the base by the merged factors of the state."""
        for group in dict.fromkeys(key.group for key in tensors if is_merged(key)):
            pairs = [
                [self.device.tensor(tensors[key]) for key in merged_keys(group, index)]
                for index in range(num_merged(tensors, group))
            ]
            offset = scale * torch.stack([b @ a for a, b in pairs]).sum(dim=0)
            key = ParamKey(group, "weight")
            transposed = isinstance(self._owner(key), Conv1D)  # which keeps (d_in, d_out)
            self._move(key, offset.T if transposed else offset)

    def _base_value(self, key: ParamKey) -> Tensor:
        if key not in self._values:
            self._values[key] = self._parameter(key).detach().clone()
        return self._values[key]

    def _parameter(self, key: ParamKey) -> nn.Parameter:
        if key not in self._addresses:
            raise ModelError(f"the model has no tensor {key}")
        return self._owner(key).get_parameter(self._addresses[key].rpartition(".")[2])

    def _owner(self, key: ParamKey) -> nn.Module:
        module = self.module.get_submodule(self._addresses[key].rpartition(".")[0])
        # peft has moved an adapted module's own parameters one level down.
        owner: nn.Module = getattr(module, "base_layer", module)
        return owner

    def _factor(self, key: ParamKey) -> nn.Parameter:
        layer = self._layers[key.group]
        factor = layer.lora_A if key.part == LORA_A else layer.lora_B
        return _weight(factor)

    def _rebuild(self, ranks: dict[str, int], scale: float) -> None:
        """Replace all LoRA layers by ones of the given ranks."""
        if self._lora is not None:
            self._lora.unload()
            self._lora, self._layers, self._ranks = None, {}, {}
        if not ranks:
            return
        linear = {str(g.name) for g in self.base.description.groups if g.linear}
        if strangers := sorted(set(ranks) - linear):
            raise ModelError(f"LoRA on {strangers[0]!r}, which is no linear module of this model")
        with torch.random.fork_rng(devices=[]):  # peft draws initial values; ours replace them
            self._lora = LoraModel(self.module, lora_config(ranks, scale), _ADAPTER)
        self._layers = {name: self.module.get_submodule(name) for name in ranks}  # type: ignore[misc]
        self._ranks = ranks
        for layer in self._layers.values():
            # On the instance, under nn.Module's own call; peft's class stays as it is.
            layer.__dict__["forward"] = partial(_forward, layer)
        for name, layer in self._layers.items():
            # peft passes over a pattern that matches nothing with no more than a warning.
            if layer.r[_ADAPTER] != ranks[name]:
                raise ModelError(
                    f"peft gave {name} rank {layer.r[_ADAPTER]}, expected {ranks[name]}"
                )

    def _low_rank(self, name: GroupName, plan: LowRank) -> dict[ParamKey, nn.Parameter]:
        if self._ranks.get(name) != plan.rank:
            raise ModelError(
                f"plan trains {name} at rank {plan.rank}, the state has rank "
                f"{self._ranks.get(name)}"
            )
        parts = [part for part, on in ((LORA_A, plan.train_a), (LORA_B, plan.train_b)) if on]
        keys = [ParamKey(name, part) for part in parts]
        return {key: self._factor(key) for key in keys}

    def _dense(self, name: GroupName, plan: Dense) -> dict[ParamKey, nn.Parameter]:
        keys = [key for key in self._addresses if key.group == name]
        if not keys:
            raise ModelError(f"plan trains group {name!r}, which the model does not have")
        for key in keys:
            self._base_value(key)  # before training moves it
        return {key: self._parameter(key) for key in keys}


def _forward(layer: LoraLayer, x: Tensor) -> Tensor:
    """What peft's own forward gives, as one operation."""
    a, b = _weight(layer.lora_A), _weight(layer.lora_B)
    return adapted(x, layer.base_layer, a, b, layer.scaling[_ADAPTER])


def _weight(factor: nn.ModuleDict) -> nn.Parameter:
    """The matrix in one of a peft layer's two factors."""
    return factor[_ADAPTER].get_parameter("weight")


def lora_config(ranks: Mapping[str, int], scale: float) -> LoraConfig:
    """One peft configuration with a rank per module and alpha/r the same for all."""
    return LoraConfig(
        r=max(ranks.values()),
        lora_alpha=alpha_of(max(ranks.values()), scale),  # type: ignore[arg-type]  # floats are fine
        target_modules=sorted(ranks),
        rank_pattern=dict(ranks),
        alpha_pattern={name: alpha_of(rank, scale) for name, rank in ranks.items()},
        lora_dropout=0.0,
        bias="none",
    )


def addresses_of(base: Base) -> dict[ParamKey, str]:
    """The full parameter name of every dense part of every group."""
    return {
        ParamKey(group.name, part): parameter_name(group, part)
        for group in base.description.groups
        for part in group.parts
    }

"""The untouched base model that a recipe describes, the same on every client."""

from __future__ import annotations

import difflib
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.utils import logging as transformers_logging

from clients.device import CPU, Device
from clients.model.groups import find_groups
from clients.model.heads import PooledClassifier, head_of
from clients.model.pretext import pretrained_by_pretext
from strategies.errors import ModelError
from strategies.recipe import ModelRecipe
from strategies.types import ModelDescription

_CLASSES: Final = {
    "sequence-classification": AutoModelForSequenceClassification,
    "image-classification": AutoModelForImageClassification,
    "causal-lm": AutoModelForCausalLM,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A model nobody has tuned yet, in evaluation mode, and what the server is told of it."""

    module: nn.Module
    description: ModelDescription
    recipe: ModelRecipe
    num_labels: int
    device: Device = CPU

    def moved(self, device: Device) -> Base:
        """The same model on another device; this one is used up."""
        return replace(self, module=self.module.to(device.place), device=device)


def build_base(
    recipe: ModelRecipe,
    *,
    num_labels: int,
    vocab_size: int | None,
    seed: int,
    public_images: NDArray[np.float32] | None = None,
    cache_folder: Path | None = None,
) -> Base:
    """Load or make the model of ``recipe``; the same bits for the same arguments, everywhere.

    Leaves torch's own random stream as it was.
    Raises: ModelError for a checkpoint that is not there, an unknown architecture or config field.
    """
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    labels = 0 if recipe.task == "causal-lm" else num_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_module(recipe, num_labels=labels, vocab_size=vocab_size)
    if recipe.pretext:
        if public_images is None or cache_folder is None:
            raise ModelError('model.pretext needs images: set model.task = "image-classification"')
        pretrained_by_pretext(module, public_images, recipe.pretext, seed, cache_folder)
    module = module.to(getattr(torch, recipe.dtype)).eval()
    return Base(
        module=module,
        description=_describe(module, recipe, labels),
        recipe=recipe,
        num_labels=labels,
    )


def build_module(recipe: ModelRecipe, *, num_labels: int, vocab_size: int | None) -> nn.Module:
    """The bare module of ``recipe``; what is random in it is drawn from torch's own stream.

    Raises: ModelError as ``build_base`` does.
    """
    config = _config(recipe, num_labels, vocab_size)
    pooled = recipe.pooling != "model" and recipe.task != "causal-lm"
    loader = AutoModel if pooled else _CLASSES[recipe.task]
    extra: dict[str, Any] = {}
    if pooled and "add_pooling_layer" in _arguments(loader, config):
        extra["add_pooling_layer"] = False
    if recipe.name == "from-config":
        model = loader.from_config(config, **extra)  # type: ignore[no-untyped-call]
    else:
        model = _load(loader, recipe.name, config, extra)
    if not pooled:
        return model  # type: ignore[no-any-return]  # transformers' auto classes are untyped
    head = head_of(recipe.head, model.config.hidden_size, num_labels, recipe.random_features)
    return PooledClassifier(
        model,
        head=head,
        pooling=recipe.pooling,  # type: ignore[arg-type]  # "model" is ruled out above
        normalize=recipe.normalize,
    )


def _config(recipe: ModelRecipe, num_labels: int, vocab_size: int | None) -> PretrainedConfig:
    if recipe.name != "from-config":
        labels = {"num_labels": num_labels} if num_labels else {}
        return _checkpoint_config(recipe, labels)
    assert recipe.architecture is not None  # noqa: S101 - the recipe's own validator
    try:
        known = AutoConfig.for_model(recipe.architecture)
    except ValueError:
        raise ModelError(f"transformers knows no architecture {recipe.architecture!r}") from None
    for field in recipe.config:
        if not hasattr(known, field):
            close = difflib.get_close_matches(field, list(vars(known)), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ModelError(f"{recipe.architecture} has no config field {field!r}{hint}")
    fields: dict[str, Any] = dict(recipe.config)
    if vocab_size is not None and hasattr(known, "vocab_size"):
        fields.setdefault("vocab_size", vocab_size)
    if num_labels:
        fields["num_labels"] = num_labels
    return AutoConfig.for_model(recipe.architecture, **fields)


def _checkpoint_config(recipe: ModelRecipe, labels: dict[str, int]) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(  # type: ignore[no-any-return]
            recipe.name, local_files_only=_offline(), **recipe.config, **labels
        )
    except (OSError, ValueError) as error:
        raise ModelError(_missing(recipe.name, error)) from None


def _load(loader: Any, name: str, config: PretrainedConfig, extra: dict[str, Any]) -> nn.Module:
    try:
        return loader.from_pretrained(  # type: ignore[no-any-return]
            name,
            config=config,
            dtype=torch.float32,
            local_files_only=_offline(),
            ignore_mismatched_sizes=True,
            use_safetensors=True,  # the other kind of file is a pickle
            **extra,
        )
    except (OSError, ValueError) as error:
        raise ModelError(_missing(name, error)) from None


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")


def _missing(name: str, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return (
        f"model {name!r} cannot be loaded: {reason}. Give model.name the path of a folder with "
        "config.json and weights, or the name of a hub checkpoint this machine can reach"
    )


def _arguments(loader: Any, config: PretrainedConfig) -> tuple[str, ...]:
    """The constructor arguments of the class ``loader`` would pick for ``config``."""
    model = loader._model_mapping[type(config)]
    if isinstance(model, tuple):
        model = model[0]
    return model.__init__.__code__.co_varnames[: model.__init__.__code__.co_argcount]  # type: ignore[no-any-return]


def _describe(module: nn.Module, recipe: ModelRecipe, num_labels: int) -> ModelDescription:
    groups = find_groups(module, num_labels=num_labels)
    blocks = [group.block for group in groups if group.block is not None]
    return ModelDescription(
        base_digest=_digest(module, recipe),
        num_parameters=sum(p.numel() for p in module.parameters()),
        num_blocks=max(blocks, default=-1) + 1,
        groups=groups,
    )


def _digest(module: nn.Module, recipe: ModelRecipe) -> str:
    """Names the base by its parameters and by how predictions are read from it, not by its path."""
    reading = recipe.model_dump_json(include={"task", "pooling", "head", "normalize", "dtype"})
    digest = hashlib.sha256(reading.encode())
    for name, parameter in module.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()

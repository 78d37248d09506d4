"""What one recipe builds, loaded once per process and shared by all clients it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from clients.data import Dataset, Shard, open_dataset
from clients.device import best_device
from clients.model import AdaptedModel, Base, build_base
from clients.model.lower import Kept
from clients.profile import resident_bytes
from clients.settings import ClientSettings
from strategies.cost import FLOAT_BYTES
from strategies.errors import ModelError
from strategies.fitting import kept_bytes
from strategies.recipe import SharedRecipe
from strategies.types import ClientId, client_ids

if TYPE_CHECKING:
    from clients.calibration import Calibration

# Tensors of the widest layer's outputs that are there at once in a forward pass, and some.
_PASSING_COPIES: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What one recipe builds, shared by all clients of the process.

    ``places`` are the clients' indices by id.
    """

    recipe: SharedRecipe
    dataset: Dataset
    base: Base
    model: AdaptedModel
    places: Mapping[ClientId, int]
    calibrations: list[Calibration] = field(default_factory=list)  # one, once it was asked for


def open_workshop(recipe_json: str, settings: ClientSettings) -> Workshop:
    """Load data and base model for a recipe; the operator's own data section comes first."""
    recipe = SharedRecipe.model_validate_json(recipe_json)
    if settings.data:
        recipe = recipe.model_copy(update={"data": settings.data})
    dataset = open_dataset(recipe, settings.cache_folder, settings.data_folder)
    base = build_base(
        recipe.model,
        num_labels=len(dataset.label_names),
        vocab_size=dataset.vocab_size,
        seed=recipe.seed,
        public_images=dataset.public_images,
        cache_folder=settings.cache_folder,
    ).moved(best_device(gpu_allowed=settings.kind != "cpu"))
    if settings.memory_limit_bytes and not base.device.on_gpu:
        room = settings.memory_limit_bytes - resident_bytes(base.device)
        dataset = dataset.at_most(_examples_in(room, dataset, base))
    places = {client: index for index, client in enumerate(client_ids(recipe.num_clients))}
    model = AdaptedModel(base, Kept(kept_bytes(settings.memory_limit_bytes)))
    return Workshop(recipe=recipe, dataset=dataset, base=base, model=model, places=places)


def _examples_in(room: int, dataset: Dataset, base: Base) -> int:
    """How many of the longest examples can go forward through the model in ``room`` bytes."""
    rows = [
        shape[0]
        for group in base.description.groups
        if group.kind != "embedding" or base.recipe.task == "causal-lm"
        for shape in group.parts.values()
        if len(shape) == 2
    ]
    splits = (dataset.train.lengths, dataset.test.lengths)
    longest = max(_patches(base) or 1, *(int(lengths.max(initial=1)) for lengths in splits))
    return max(int(room / (_PASSING_COPIES * FLOAT_BYTES * longest * max(rows))), 1)


def shard_of(shop: Workshop, client_id: ClientId) -> Shard:
    """One client's examples.

    Raises: ModelError for an id that is none of the recipe's.
    """
    if client_id not in shop.places:
        ids = client_ids(shop.recipe.num_clients)
        raise ModelError(f"client {client_id!r} is none of {ids[0]} … {ids[-1]}")
    return shop.dataset.shard(shop.places[client_id])


def tokens_per_example(shop: Workshop, shard: Shard) -> float:
    """Mean length of the client's training examples; for images, their patches and one more."""
    ids = np.concatenate([*shard.train, np.zeros(0, np.int64)])
    if patches := _patches(shop.base):
        return float(patches)
    lengths = shop.dataset.train.lengths[ids.astype(np.int64)]
    return float(lengths.mean()) if len(lengths) else 1.0


def _patches(base: Base) -> int | None:
    """An image's patches and one more; None where the model looks at no patches."""
    config = base.module.config
    side, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if isinstance(side, int) and isinstance(patch, int):
        return (side // patch) ** 2 + 1
    return None

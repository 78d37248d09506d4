"""What one recipe builds, loaded once per process and shared by all clients it serves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clients.data import Dataset, Shard, open_dataset
from clients.model import AdaptedModel, Base, build_base
from clients.settings import ClientSettings
from strategies.errors import ModelError
from strategies.recipe import SharedRecipe
from strategies.types import ClientId, client_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What one recipe builds, shared by all clients of the process."""

    recipe: SharedRecipe
    dataset: Dataset
    base: Base
    model: AdaptedModel


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
    )
    return Workshop(recipe=recipe, dataset=dataset, base=base, model=AdaptedModel(base))


def shard_of(shop: Workshop, client_id: ClientId) -> Shard:
    """One client's examples.

    Raises: ModelError for an id that is none of the recipe's.
    """
    ids = client_ids(shop.recipe.num_clients)
    if client_id not in ids:
        raise ModelError(f"client {client_id!r} is none of {ids[0]} … {ids[-1]}")
    return shop.dataset.shard(ids.index(client_id))


def tokens_per_example(shop: Workshop, shard: Shard) -> float:
    """Mean length of the client's training examples; for images, their patches and one more."""
    config, ids = shop.base.module.config, np.concatenate([*shard.train, np.zeros(0, np.int64)])
    side, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if isinstance(side, int) and isinstance(patch, int):
        return float((side // patch) ** 2 + 1)
    lengths = shop.dataset.train.lengths[ids.astype(np.int64)]
    return float(lengths.mean()) if len(lengths) else 1.0

"""A base for the offline quickstart: an encoder trained on images that no client owns."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Final

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from clients.model.heads import PooledClassifier
from strategies.errors import ModelError
from strategies.recipe import PretextRecipe
from strategies.rng import rng_for, seed_for

log = logging.getLogger(__name__)

_TEMPERATURE: Final = 0.2
_VERSION: Final = "views-1"  # part of the cache key: change it with the algorithm


def pretrained_by_pretext(
    model: nn.Module,
    images: NDArray[np.float32],
    recipe: PretextRecipe,
    seed: int,
    cache_folder: Path,
) -> None:
    """Train the encoder of ``model`` in place, or load what an earlier process made of it.

    Processes that come at the same time train once.
    Raises: ModelError unless the model pools token features itself.
    """
    if not isinstance(model, PooledClassifier):
        raise ModelError('model.pretext needs model.pooling = "mean" or "cls"')
    path = cache_folder / "pretext" / f"{_key(model, images, recipe, seed)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not _is_whole(path):
            train_by_pretext(model, images, recipe, seed)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            save_file(dict(model.encoder.state_dict()), temporary)
            temporary.replace(path)
    model.encoder.load_state_dict(load_file(path))


def _is_whole(path: Path) -> bool:
    """Whether there is a file, and one that can be read; what is damaged is made again."""
    try:
        return bool(load_file(path))
    except FileNotFoundError:
        return False
    except (OSError, SafetensorError, ValueError) as error:
        log.warning("%s is damaged (%s); training it again", path, error)
        return False


def train_by_pretext(
    model: PooledClassifier, images: NDArray[np.float32], recipe: PretextRecipe, seed: int
) -> None:
    """Teach the encoder to recognise an image under two random distortions; no labels are used.

    Each image is shifted, rotated by up to 20°, scaled and made noisy twice; the two views should
    be nearer to each other than to the views of other images in the batch.
    Shapes: ``images`` (n, c, h, w) in ±1.  One thread, so that the weights do not depend on cores.
    Source: SimCLR, Chen et al., arXiv 2002.05709, eq. 1, without a projection head.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "pretext"))
        rng, pixels = rng_for(seed, "pretext", "batches"), torch.from_numpy(images)
        optimizer = torch.optim.AdamW(model.encoder.parameters(), lr=recipe.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=recipe.steps
        )
        model.train()
        for _ in range(recipe.steps):
            chosen = rng.permutation(len(images))[: recipe.batch_size]
            loss = _contrast(model, pixels[torch.from_numpy(chosen)])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    model.eval()


def _contrast(model: PooledClassifier, images: Tensor) -> Tensor:
    """InfoNCE over two views of each image: (2n, 2n) similarities, one positive per row."""
    views = torch.cat([_distorted(images), _distorted(images)])
    features = functional.normalize(model.features({"pixel_values": views}), dim=-1)
    similarity = features @ features.T / _TEMPERATURE
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(views)).roll(len(images))
    return functional.cross_entropy(similarity, partner)


def _distorted(images: Tensor) -> Tensor:
    """One random affine map and some noise per image."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * (20 * torch.pi / 180)
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.15
    shift = (torch.rand(count, 2) * 2 - 1) * 0.25
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0], maps[:, 0, 1] = angle.cos() * scale, -angle.sin() * scale
    maps[:, 1, 0], maps[:, 1, 1] = angle.sin() * scale, angle.cos() * scale
    maps[:, :, 2] = shift
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    # Outside is background: −1 after scaling, which zero padding gives once the images are moved
    # up.
    moved = functional.grid_sample(images + 1, grid, align_corners=False) - 1
    return moved + 0.1 * torch.randn_like(moved)


def _key(
    model: PooledClassifier, images: NDArray[np.float32], recipe: PretextRecipe, seed: int
) -> str:
    digest = hashlib.sha256(f"{_VERSION}{recipe.model_dump_json()}{seed}".encode())
    digest.update(images.tobytes())
    for name, value in model.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:32]

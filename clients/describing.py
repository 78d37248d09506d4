"""What a client says of itself: its examples, and its device as far as that was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clients import profile as measured
from clients.calibration import calibrated
from clients.data import Shard
from clients.model.lower import Lower
from clients.settings import ClientSettings
from clients.workshop import Workshop, tokens_per_example
from strategies.types import ClientId, ClientProfile


def profile_of(
    shop: Workshop, shard: Shard, client_id: ClientId, settings: ClientSettings
) -> ClientProfile:
    """The client's profile.

    A device of the client's own is timed, once per process and recipe; a simulated client's, of
    which ``settings.kind`` says nothing, is not.
    Raises: ModelError for a GPU that is not there.
    """
    device, limit = shop.model.device, settings.memory_limit_bytes
    total = measured.memory_bytes(device)
    lent = min(limit or total, total)
    profile = ClientProfile(
        client_id=client_id,
        kind=measured.device_kind(device, limit, settings.kind),
        device=measured.device_name(device),
        memory_bytes=lent,
        memory_limit_bytes=lent if limit or device.on_gpu else None,
        uplink_limit_bytes_per_second=settings.uplink_limit_bytes_per_second,
        free_disk_bytes=measured.free_disk_bytes(settings.state_folder),
        dtypes=("float32", "bfloat16") if device.autocast_to else ("float32",),
        recomputes=shop.model.checkpointable,
        keeps=_keeps(shop, shard),
        tasks=shop.dataset.tasks,
        num_train=shard.num_train,
        num_test=shard.num_test,
        model=shop.base.description,
        tokens_per_example=tokens_per_example(shop, shard),
    )
    real = settings.kind is not None or profile.memory_limit_bytes is not None
    return _timed(profile, shop, shard) if real else profile


def _keeps(shop: Workshop, shard: Shard) -> bool:
    """Whether what comes out of the model's blocks can be kept, by the client's first example."""
    ids = np.concatenate([*shard.train, np.zeros(0, np.int64)]).astype(np.int64)[:1]
    border = shop.base.description.num_blocks
    return Lower.of(shop.model, shop.dataset.train, [ids], border=border) is not None


def _timed(profile: ClientProfile, shop: Workshop, shard: Shard) -> ClientProfile:
    ids = np.concatenate([*shard.train, np.zeros(0, np.int64)]).astype(np.int64)
    if not len(ids):
        return profile
    if not shop.calibrations:
        split, tokens = shop.dataset.train, profile.tokens_per_example
        shop.calibrations.append(calibrated(shop.model, split, ids, tokens))
    found, lengths = shop.calibrations[0], shop.dataset.train.lengths[ids]
    return replace(
        profile,
        step_seconds=found.step_seconds,
        flops_per_second=found.flops_per_second,
        activation_bytes=found.activation_bytes,
        longest_example=int(max(lengths.max(), profile.tokens_per_example)),
        resident_bytes=measured.resident_bytes(shop.model.device),
    )

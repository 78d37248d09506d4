"""GlobalState ⇄ bytes, and the way back to the newest one that can be read."""

from __future__ import annotations

import json
import struct
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from orchestrator.store.base import RunStore
from orchestrator.store.blobs import BlobStore
from strategies.errors import BlobError
from strategies.types import Array, GlobalState, GroupName, ParamKey

_VERSION: Final = 1
_TENSOR, _AGGREGATOR, _SEPARATOR = "tensor", "aggregator", "|"


def dump_state(state: GlobalState) -> bytes:
    """The same bytes for equal states, whatever the order of their mappings."""
    named = {
        f"{_TENSOR}{_SEPARATOR}{k.group}{_SEPARATOR}{k.part}": v for k, v in state.tensors.items()
    }
    named |= {f"{_AGGREGATOR}{_SEPARATOR}{k}": v for k, v in state.aggregator_state.items()}
    header = {
        "version": _VERSION,
        "step_index": state.step_index,
        "group_scores": dict(state.group_scores),
    }
    arrays = {name: np.asarray(named[name], order="C") for name in sorted(named)}
    return save(arrays, metadata={"perennial": json.dumps(header, sort_keys=True)})


def load_state(data: bytes) -> GlobalState:
    """Raises: BlobError if ``data`` is no state of this version."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["perennial"])
        arrays = load(data)
    except (struct.error, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BlobError(f"{len(data)} bytes that are no checkpoint: {error}") from None
    if header["version"] != _VERSION:
        raise BlobError(f"checkpoint format {header['version']}, this program reads {_VERSION}")
    tensors, aggregator = dict[ParamKey, Array](), dict[str, Array]()
    for name, array in arrays.items():
        kind, _, rest = name.partition(_SEPARATOR)
        if kind == _TENSOR:
            group, _, part = rest.rpartition(_SEPARATOR)
            tensors[ParamKey(GroupName(group), part)] = array
        else:
            aggregator[rest] = array
    return GlobalState(
        step_index=header["step_index"],
        tensors=tensors,
        aggregator_state=aggregator,
        group_scores=header["group_scores"],
    )


def restore(run_id: str, store: RunStore, blobs: BlobStore) -> tuple[GlobalState, str] | None:
    """The newest committed state that can be read, and its digest; None before the first commit.

    A checkpoint that cannot be read is named in an event, the one before it is used, and the steps
    after that are forgotten so that they can be done again.
    Raises: BlobError if there are checkpoints and none can be read.
    """
    digests = store.checkpoints(run_id)
    for digest in digests:
        try:
            state = load_state(blobs.get(digest))
        except BlobError as error:
            store.append_event(run_id, "checkpoint-damaged", f"{error}; using the one before")
            continue
        store.rewind(run_id, state.step_index)
        return state, digest
    if digests:
        raise BlobError(f"none of the {len(digests)} checkpoints of run {run_id} can be read")
    return None

"""GlobalState ⇄ blobs, and the way back to the newest one that can be read."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from orchestrator.store.base import RunStore
from orchestrator.store.blobs import BlobStore
from strategies.errors import BlobError
from strategies.types import Array, ClientId, GlobalState, Holding, ParamKey, Tensors

_VERSION: Final = 3
_NAMED: Final = 10  # of older ones that are not there most were let go
# Larger arrays are blobs of their own: one that a step leaves alone is not written again.
_APART_BYTES: Final = 2**20
_VALUE: Final = "value"
_DAMAGED: Final = (
    struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError,
    SafetensorError,
)  # fmt: skip
_TENSOR, _MEMORY, _EVIDENCE, _SEPARATOR = "tensor", "memory", "evidence", "|"


def save_state(state: GlobalState, blobs: BlobStore) -> str:
    """Store ``state`` durably; its digest, the same for equal states.

    Raises: StoreError if it cannot be written.
    """
    named = {_joined(_TENSOR, key.text): value for key, value in state.tensors.items()}
    for kind, memory in state.memories.items():
        named |= {_joined(_MEMORY, kind, name): value for name, value in memory.items()}
    for client, reported in state.evidence.items():
        named |= {_joined(_EVIDENCE, client, key.text): value for key, value in reported.items()}
    arrays = {name: np.asarray(named[name], order="C") for name in sorted(named)}
    apart = {
        name: blobs.put(save({_VALUE: array}))
        for name, array in arrays.items()
        if array.nbytes >= _APART_BYTES
    }
    header = {
        "version": _VERSION,
        "apart": apart,
        "step_index": state.step_index,
        "changed": dict(state.changed),
        "holdings": {client: asdict(held) for client, held in state.holdings.items()},
    }
    kept = {name: array for name, array in arrays.items() if name not in apart}
    return blobs.put(save(kept, metadata={"perennial": json.dumps(header, sort_keys=True)}))


def load_state(digest: str, blobs: BlobStore) -> GlobalState:
    """The state that was saved as ``digest``.

    Raises: BlobError if it or a part of it is missing, damaged or no state of this version.
    """
    data = blobs.get(digest)
    try:
        header, arrays = _opened(data)
        arrays |= {
            name: load(blobs.get(str(apart)))[_VALUE] for name, apart in header["apart"].items()
        }
        return _state(header, arrays)
    except _DAMAGED as error:
        raise BlobError(f"{len(data)} bytes that are no checkpoint: {error}") from None


def _opened(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["perennial"])
    if header["version"] != _VERSION:
        raise BlobError(f"checkpoint format {header['version']}, this program reads {_VERSION}")
    return header, load(data)


def _state(header: dict[str, Any], arrays: dict[str, Array]) -> GlobalState:
    tensors = dict[ParamKey, Array]()
    memories = dict[str, dict[str, Array]]()
    evidence = dict[ClientId, dict[ParamKey, Array]]()
    for name, array in arrays.items():
        kind, _, rest = name.partition(_SEPARATOR)
        owner, _, last = rest.partition(_SEPARATOR)
        if kind == _TENSOR:
            tensors[ParamKey.parse(rest)] = array
        elif kind == _MEMORY:
            memories.setdefault(owner, {})[last] = array
        else:
            evidence.setdefault(ClientId(owner), {})[ParamKey.parse(last)] = array
    state = GlobalState(
        step_index=header["step_index"],
        tensors=tensors,
        memories=memories,
        evidence=evidence,
        changed=header["changed"],
        holdings={ClientId(c): _holding(held) for c, held in header["holdings"].items()},
    )
    return ordered(state)


def ordered(state: GlobalState) -> GlobalState:
    """``state`` with all that it holds in the order of names.

    A checkpoint does not keep the order in which a step came by things.  Messages are written and
    sums are made in that order, so a state that was kept and one that goes on must have the same.
    """
    return replace(
        state,
        tensors=_by_key(state.tensors),
        memories={
            kind: dict(sorted(held.items())) for kind, held in sorted(state.memories.items())
        },
        evidence={client: _by_key(told) for client, told in sorted(state.evidence.items())},
        changed=dict(sorted(state.changed.items())),
        holdings={
            client: replace(held, ranks=dict(sorted(held.ranks.items())))
            for client, held in sorted(state.holdings.items())
        },
    )


def _by_key(tensors: Tensors) -> dict[ParamKey, Array]:
    return {key: tensors[key] for key in sorted(tensors, key=lambda key: key.text)}


def blobs_of(digest: str, blobs: BlobStore) -> frozenset[str]:
    """The digests of all blobs that the state ``digest`` lies in; only its header is read.

    Of a state that cannot be read its own alone.
    """
    try:
        with blobs.path(digest).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(json.loads(file.read(length))["__metadata__"]["perennial"])
    except (OSError, struct.error, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return frozenset((digest,))
    return frozenset((digest, *header["apart"].values()))


def _joined(*parts: str) -> str:
    return _SEPARATOR.join(parts)


def _holding(plain: dict[str, Any]) -> Holding:
    return Holding(step=plain["step"], ranks=plain["ranks"], own=tuple(plain["own"]))


def restore(run_id: str, store: RunStore, blobs: BlobStore) -> tuple[GlobalState, str] | None:
    """The newest committed state that can be read, and its digest; None before the first commit.

    A checkpoint that cannot be read is named in an event, the one before it is used, and the steps
    after that are forgotten so that they can be done again.
    Raises: BlobError if there are checkpoints and none can be read.
    """
    digests = store.checkpoints(run_id)
    for age, digest in enumerate(digests):
        try:
            state = load_state(digest, blobs)
        except BlobError as error:
            if age < _NAMED:
                store.append_event(run_id, "checkpoint-damaged", f"{error}; using the one before")
            continue
        store.rewind(run_id, state.step_index)
        return state, digest
    if digests:
        raise BlobError(
            f"none of the {len(digests)} checkpoints of run {run_id} can be read from "
            f"{blobs.folder}, of which the newest few are kept; put the folder back, then resume"
        )
    return None

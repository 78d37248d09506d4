"""Durable state of a client, one file per step, so that a client can step back with the server."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clients.archives import DAMAGED, read_arrays
from clients.flips import Answered
from clients.writing import write_whole
from strategies.errors import DataError
from strategies.limits import is_identifier
from strategies.protocols import ReplayMemory
from strategies.types import Array, ClientId, ParamKey, Tensors

log = logging.getLogger(__name__)

_KEPT_VERSIONS: Final = 4  # as far back as a server's three checkpoints, and the step under way
_TENSORS: Final = ("personal", "residuals")
_WATCHED: Final = ("window", "known", "held")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outputs:
    """What a model once answered: ``ids`` (n,) of examples and its logits ``values`` (n, C).

    Logits of classes that were no answers then are −inf.
    """

    ids: NDArray[np.int64]
    values: NDArray[np.float32]

    def only(self, ids: NDArray[np.int64]) -> Outputs:
        """Those of ``ids``."""
        kept = np.isin(self.ids, ids)
        return Outputs(ids=self.ids[kept], values=self.values[kept])

    def joined(self, other: Outputs) -> Outputs:
        """With ``other``'s added."""
        return Outputs(
            ids=np.concatenate([self.ids, other.ids]),
            values=np.concatenate([self.values, other.values]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """What a causal LM is taught instead of an example's own completion.

    ``ids`` (n,) of examples and their ``tokens`` (n, t), the end token included and −1 after it.
    """

    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    def of(self, ids: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        """The tokens (t,) of those of ``ids`` that have any here."""
        found = np.isin(self.ids, ids)
        rows = zip(self.ids[found].tolist(), self.tokens[found], strict=True)
        return {example: row[row >= 0] for example, row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """What moving a tensor costs: its values' ``fisher`` information and where they stood.

    A tensor without an entry in ``anchors`` is free until it has one.
    """

    fisher: Tensors = field(default_factory=dict)
    anchors: Tensors = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What a client remembers in order to notice where a task begins.

    ``lowest`` is the lowest mean signal since the last boundary in nats, None before the first;
    ``window`` (n,) are the ids it was last measured on; ``held`` are the classes the client has had
    examples of, ``known`` those it had before the last boundary.
    """

    lowest: float | None = None
    window: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    known: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    held: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientState:
    """What a client carries from round to round.

    ``task_index`` is the last stage it trained in or, where it notices boundaries itself, its own
    count of tasks.  ``offered`` are the ids of the current task, or of all it counted itself, that
    the memory has been offered already.
    ``outputs`` are answers of earlier models that a client method compares with, by its name;
    ``importances`` what of the model mattered to past tasks, by a name the method chooses;
    ``chosen`` ids of past examples a method has settled on for the current task, by its name;
    ``targets`` what it is taught in this task instead of the reference, None without such a method.
    ``personal`` are parts of the model that are this client's own; ``residuals`` what compression
    has kept back so far, as factors (of B·A, not of the change) or dense tensors.  ``answered`` are
    the held-out examples it got right, by the step of the evaluation.
    """

    memory: ReplayMemory
    task_index: int = -1
    offered: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    watch: Watch = field(default_factory=Watch)
    outputs: Mapping[str, Outputs] = field(default_factory=dict)
    importances: Mapping[str, Importance] = field(default_factory=dict)
    chosen: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    targets: Targets | None = None
    personal: Tensors = field(default_factory=dict)
    residuals: Tensors = field(default_factory=dict)
    answered: Mapping[int, Answered] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientStateStore:
    """Files ``<folder>/<run>/<client>/step-<index>.npz``; the last few versions are kept."""

    folder: Path

    def load(self, run_id: str, client_id: ClientId, *, before_step: int) -> ClientState | None:
        """The newest state older than ``before_step``; a damaged file is named and passed over.

        Raises: DataError if there are files and all of them are damaged.
        """
        candidates = [p for step, p in self._versions(run_id, client_id) if step < before_step]
        for path in reversed(candidates):
            try:
                return _read(path)
            except DAMAGED as error:
                log.warning(
                    "client state %s is damaged (%s); using the version before", path, error
                )
        if candidates:
            raise DataError(f"every state file of {client_id} in {candidates[0].parent} is damaged")
        return None

    def save(self, run_id: str, client_id: ClientId, step: int, state: ClientState) -> None:
        """Write atomically, forget versions this one replaces and all but the last few.

        Raises: NoRoomError or DataError if the disk does not take it; the versions before stay.
        """
        path = self.folder_of(run_id, client_id) / f"step-{step:08d}.npz"
        write_whole(path, lambda temporary: _write(temporary, state))
        versions = list(self._versions(run_id, client_id))
        kept = [p for index, p in versions if index <= step][-_KEPT_VERSIONS:]
        for _, old in versions:
            if old not in kept:
                old.unlink(missing_ok=True)

    def folder_of(self, run_id: str, client_id: ClientId) -> Path:
        """Where everything of one client in one run lies.

        Raises: DataError for ids that are more than the name of a folder.
        """
        for name in (run_id, client_id):
            if not is_identifier(name):
                raise DataError(f"id {name!r:.80} cannot name a folder, expected such as client-07")
        return self.folder / run_id / client_id

    def _versions(self, run_id: str, client_id: ClientId) -> Iterator[tuple[int, Path]]:
        """Step and file, oldest first."""
        for path in sorted(self.folder_of(run_id, client_id).glob("step-*.npz")):
            yield int(path.stem.removeprefix("step-")), path


def _write(path: Path, state: ClientState) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **_arrays(state))
        file.flush()
        os.fsync(file.fileno())


def _arrays(state: ClientState) -> dict[str, Array]:
    memory = state.memory
    numbers = np.array([memory.capacity, memory.num_offered, state.task_index], dtype=np.int64)
    arrays: dict[str, Array] = {
        "numbers": numbers,
        "ids": memory.ids,
        "tasks": memory.tasks,
        "labels": memory.labels,
        "groups": memory.offered,
        "losses": memory.losses,
        "offered": state.offered,
    }
    if state.watch.lowest is not None:
        arrays["watch/lowest"] = np.array(state.watch.lowest)
        arrays |= {f"watch/{name}": getattr(state.watch, name) for name in _WATCHED}
    for name, found in state.outputs.items():
        arrays[f"outputs/{name}/ids"], arrays[f"outputs/{name}/values"] = found.ids, found.values
    if state.targets is not None:
        arrays |= {"targets/ids": state.targets.ids, "targets/tokens": state.targets.tokens}
    arrays |= {f"chosen/{name}": ids for name, ids in state.chosen.items()}
    for name, kept in state.importances.items():
        for part, tensors in (("fisher", kept.fisher), ("anchors", kept.anchors)):
            arrays |= {f"importances/{name}/{part}/{k.text}": v for k, v in tensors.items()}
    for step, answered in state.answered.items():
        arrays[f"answered/{step}/ids"] = answered.ids
        arrays[f"answered/{step}/right"] = answered.right
    for name in _TENSORS:
        arrays |= {f"{name}/{key.text}": value for key, value in getattr(state, name).items()}
    return arrays


def _read(path: Path) -> ClientState:
    arrays = read_arrays(path)
    capacity, num_offered, task_index = (int(number) for number in arrays["numbers"])
    memory = ReplayMemory(
        capacity=capacity,
        ids=arrays["ids"],
        tasks=arrays["tasks"],
        labels=arrays["labels"],
        num_offered=num_offered,
        offered=arrays["groups"],
        losses=arrays["losses"],
    )
    tensors = {
        name: {ParamKey.parse(key): value for key, value in _under(arrays, name).items()}
        for name in _TENSORS
    }
    targets = _under(arrays, "targets")
    names = {entry.split("/")[1] for entry in arrays if entry.startswith("outputs/")}
    outputs = {
        name: Outputs(ids=arrays[f"outputs/{name}/ids"], values=arrays[f"outputs/{name}/values"])
        for name in names
    }
    return ClientState(
        memory=memory,
        task_index=task_index,
        offered=arrays["offered"],
        watch=_watch(arrays),
        outputs=outputs,
        importances=_importances(arrays),
        chosen=_under(arrays, "chosen"),
        targets=Targets(**targets) if targets else None,
        answered=_answered(arrays),
        **tensors,
    )


def _importances(arrays: Mapping[str, Array]) -> dict[str, Importance]:
    parts = dict[str, dict[str, dict[ParamKey, Array]]]()
    for entry, value in _under(arrays, "importances").items():
        name, part, key = entry.split("/", 2)
        found = parts.setdefault(name, {"fisher": {}, "anchors": {}})
        found[part][ParamKey.parse(key)] = value
    return {name: Importance(**tensors) for name, tensors in parts.items()}


def _answered(arrays: Mapping[str, Array]) -> dict[int, Answered]:
    steps = {int(name.split("/")[1]) for name in arrays if name.startswith("answered/")}
    return {
        step: Answered(ids=arrays[f"answered/{step}/ids"], right=arrays[f"answered/{step}/right"])
        for step in sorted(steps)
    }


def _under(arrays: Mapping[str, Array], folder: str) -> dict[str, Array]:
    """The entries whose names begin with ``folder/``, by what follows."""
    start = f"{folder}/"
    return {entry.removeprefix(start): arrays[entry] for entry in arrays if entry.startswith(start)}


def _watch(arrays: Mapping[str, Array]) -> Watch:
    if "watch/lowest" not in arrays:
        return Watch()
    found = {name: arrays[f"watch/{name}"] for name in _WATCHED}
    return Watch(lowest=float(arrays["watch/lowest"]), **found)

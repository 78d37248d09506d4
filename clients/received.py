"""The tensors a client works with: those of a message, and those it has from an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from clients.profile import free_disk_bytes
from clients.writing import NoRoomError, write_whole
from strategies.catalog import COMPRESSORS, build
from strategies.compression.chain import decompress
from strategies.errors import PerennialError
from strategies.lora import drawn_factors
from strategies.types import (
    FACTORS,
    LORA_A,
    Array,
    Assignment,
    GroupName,
    GroupSpec,
    ParamKey,
    Tensors,
)

# The server believes what the client last answered for.  It may step back from the step under way
# past a checkpoint that cannot be read any more, or two, and one more covers a lost answer.
_KEPT_MESSAGES: Final = 4


# Beside messages four versions of the client's own state are kept, and one of each is written.
_COPIES: Final = 10


class MissingTensorsError(PerennialError):
    """The server left out tensors that are not here any more."""


@dataclass(frozen=True, slots=True)
class ReceivedTensors:
    """Files ``received-<step>.safetensors`` in one client's folder: whole models, decompressed."""

    folder: Path

    def assemble(
        self,
        assignment: Assignment,
        tensors: Tensors,
        *,
        seed: int,
        groups: Mapping[GroupName, GroupSpec],
    ) -> dict[ParamKey, Array]:
        """The whole model of ``assignment``: what came, what was kept, what the run's seed gives.

        Raises: MissingTensorsError naming the first tensor that cannot be had.
        """
        model = _decoded(assignment, tensors)
        earlier = self._read(assignment.held.step) if assignment.held.ranks else {}
        for name, rank in assignment.held.ranks.items():
            key = ParamKey.parse(name)
            if name in earlier:
                value = _first(key, earlier[name], rank)
            elif key.part in FACTORS and key.group in groups:
                pair = drawn_factors(seed, groups[key.group], rank)
                value = pair.a if key.part == LORA_A else pair.b
            else:
                raise MissingTensorsError(
                    f"{name} was to be taken from the message of step {assignment.held.step}, "
                    f"which is not in {self.folder}; send it again"
                )
            model[key] = value
        return model

    def keep(self, step: int, model: Tensors) -> None:
        """Remember a message's model; all but the newest few are forgotten.

        Raises: NoRoomError if the disk is too full for it and for what training will leave.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = _COPIES * sum(value.nbytes for value in model.values())
        if (free := free_disk_bytes(self.folder)) < needed:
            raise NoRoomError(
                f"{self.folder}: found {free} free bytes, expected {needed} for the client's "
                f"state, {needed - free} are missing; free some space or use another state folder"
            )
        path = self._path(step)
        arrays = {key.text: np.ascontiguousarray(value) for key, value in model.items()}
        write_whole(path, lambda temporary: save_file(arrays, temporary))
        files = sorted(self.folder.glob("received-*.safetensors"))
        for old in [file for file in files if file <= path][:-_KEPT_MESSAGES]:
            old.unlink(missing_ok=True)
        for later in [file for file in files if file > path]:  # the server has stepped back
            later.unlink(missing_ok=True)

    def _read(self, step: int) -> dict[str, Array]:
        try:
            return dict(load_file(self._path(step)))
        except (OSError, SafetensorError, KeyError, ValueError):
            return {}  # what cannot be read is asked for again

    def _path(self, step: int) -> Path:
        return self.folder / f"received-{step:08d}.safetensors"


def _decoded(assignment: Assignment, tensors: Tensors) -> dict[ParamKey, Array]:
    chain = [build(COMPRESSORS, choice, key="downlink") for choice in assignment.downlink]
    shapes = {
        ParamKey(key.group, key.part.partition("#")[0]): value.shape
        for key, value in tensors.items()
        if key.part.endswith(".values")
    }
    return decompress(tensors, chain, shapes)


def _first(key: ParamKey, value: Array, rank: int) -> Array:
    """The first components of a factor; other tensors whole."""
    if key.part not in FACTORS:
        return value
    return value[:rank] if key.part == LORA_A else value[:, :rank]

"""GlobalState → a PEFT adapter folder, and how it lies to the base, without loading the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config import RunConfig
from orchestrator.federation import Federation
from orchestrator.intruders import count_intruders, inspected_groups
from orchestrator.transport import Transport
from strategies.errors import TransportError
from strategies.lora import is_factor, joined
from strategies.peft_format import write_adapter
from strategies.types import Array, GlobalState, GroupName, ParamKey, Tensors


@dataclass(slots=True, kw_only=True)
class Publisher:
    """Writes adapters of one run into its ``folder``; asks a client once for the base values."""

    config: RunConfig
    federation: Federation
    transport: Transport
    folder: Path
    _base_values: dict[ParamKey, Array] = field(default_factory=dict)

    def publish(self, task_index: int, state: GlobalState) -> Path:
        """The adapter after ``task_index`` as a folder ``PeftModel.from_pretrained`` reads."""
        return self._write("adapters", task_index, state)

    def keep_aside(self, task_index: int, state: GlobalState) -> Path:
        """The same for a state that is not published, in another place, to be looked at."""
        return self._write("candidates", task_index, state)

    def _write(self, kind: str, task_index: int, state: GlobalState) -> Path:
        target = self.folder / kind / f"task-{task_index:03d}"
        tensors = joined(state.tensors)
        dense = {key.group for key in tensors if not is_factor(key)}
        # A base made from a config exists nowhere else, so it is published beside the adapter.
        made_here = self.config.model.name == "from-config"
        self._fetch(set(self.federation.groups()) if made_here else dense)
        write_adapter(
            target,
            recipe=self.config.shared_recipe(),
            description=self.federation.model,
            tasks=self.federation.tasks,
            tensors=tensors,
            scale=self.config.adapter.scale,
            base_values=self._base_values,
        )
        return target

    def num_intruders(self, state: GlobalState) -> int:
        """Intruder dimensions of the state, over all groups with a low-rank update."""
        specs = self.federation.groups()
        self._fetch(set(inspected_groups(specs.values(), state.tensors)))
        scale = self.config.adapter.scale
        return count_intruders(specs, state.tensors, self._base_values, scale)

    def _fetch(self, groups: set[GroupName]) -> None:
        missing = groups - {key.group for key in self._base_values}
        if missing:
            found = self.transport.base_values(
                self.config.shared_recipe().model_dump_json(),
                sorted(missing),
                timeout_seconds=self.config.federation.round_timeout_seconds,
            )
            self._base_values |= self._checked(found, missing)

    def _checked(self, found: Tensors, groups: set[GroupName]) -> Tensors:
        specs = self.federation.groups()
        shapes = {ParamKey(g, p): s for g in groups for p, s in specs[g].parts.items()}
        if {key: value.shape for key, value in found.items()} != shapes:
            strange = sorted(map(str, found.keys() ^ shapes.keys()))[:3]
            raise TransportError(
                f"base values of {len(groups)} groups came with other tensors or shapes than the "
                f"model has{': ' if strange else ''}{', '.join(strange)}"
            )
        return found

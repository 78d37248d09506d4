"""A state as a folder that ``PeftModel.from_pretrained`` reads, written without loading the model.

The folder holds peft's ``adapter_config.json`` and ``adapter_model.safetensors`` (dense groups such
as the head as ``modules_to_save``), ``perennial.json`` with what it takes to rebuild the untouched
base, a short README, and ``base.safetensors`` for bases that exist nowhere else.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from strategies.errors import ModelError
from strategies.lora import alpha_of, keys_of
from strategies.recipe import SharedRecipe
from strategies.types import (
    LORA_A,
    LORA_B,
    Array,
    GroupName,
    GroupSpec,
    ModelDescription,
    ParamKey,
    TaskInfo,
    Tensors,
)

CARD: Final = "perennial.json"
BASE_WEIGHTS: Final = "base.safetensors"
_PREFIX: Final = "base_model.model."
_OS_CODE: Final = re.compile(r"(?:code: |os error )(\d+)")  # in the words of safetensors' own error
_SNIPPET: Final = """\
# {name}

A LoRA adapter in PEFT format, learnt by perennial over {tasks} task(s): {names}.

```python
from clients.model import load_base  # pip install perennial
from peft import PeftModel

folder = "."
model = PeftModel.from_pretrained(load_base(folder), folder)
```

Base model: `{base}`. Labels, pooling and head: `perennial.json`.
"""


def parameter_name(spec: GroupSpec, part: str) -> str:
    """The full name, within the model, of one dense part of a group.

    The head is one group whatever its module is called: its role is that name, or empty where
    several modules make up the head and the parts carry their names.
    """
    owner = spec.role if spec.kind == "head" else spec.name
    return f"{owner}.{part}" if owner else part


def write_adapter(  # noqa: PLR0913 - what an adapter is made of, all by name
    folder: Path,
    *,
    recipe: SharedRecipe,
    description: ModelDescription,
    tasks: Sequence[TaskInfo],
    tensors: Tensors,
    scale: float,
    base_values: Tensors,
) -> None:
    """Write ``tensors`` as an adapter; ``folder`` appears at once and whole, or not at all.

    ``base_values`` must hold the base's own values of every densely trained group, and of all
    groups if the base is made from a config.
    Raises: ModelError naming a group whose base values are missing; OSError.
    """
    specs = {group.name: group for group in description.groups}
    dense = {key.group for key in tensors if key.part not in (LORA_A, LORA_B)}
    tensors = _with_an_adapter(tensors, specs, dense)
    # A dense module is saved whole: parts that did not move keep their base values.
    weights = _factors(tensors) | _dense(dense, specs, tensors, base_values)
    with _at_once(folder) as temporary:
        _save(weights, temporary / "adapter_model.safetensors")
        _write_json(
            temporary / "adapter_config.json", _peft_config(recipe, specs, tensors, dense, scale)
        )
        _write_json(temporary / CARD, _card(recipe, description, tasks))
        if recipe.model.name == "from-config":
            values = {
                parameter_name(spec, part): _base_value(base_values, ParamKey(spec.name, part))
                for spec in description.groups
                for part in spec.parts
            }
            _save(values, temporary / BASE_WEIGHTS)
        names = ", ".join(task.name for task in tasks)
        base = recipe.model.name
        card = _SNIPPET.format(name=folder.name, tasks=len(tasks), names=names, base=base)
        (temporary / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def _at_once(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of ``folder`` once it is filled, and goes if it is not."""
    for abandoned in folder.parent.glob(f".{folder.name}.*.tmp"):  # by a process that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save(tensors: dict[str, Array], path: Path) -> None:
    """Raises: OSError, as which safetensors' own error for a full disk does not come."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = _OS_CODE.search(str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def _with_an_adapter(
    tensors: Tensors, specs: Mapping[GroupName, GroupSpec], dense: set[GroupName]
) -> Tensors:
    """``tensors``, with a rank-1 adapter of zeros if there is none: peft needs at least one."""
    free = [spec for spec in specs.values() if spec.linear and spec.name not in dense]
    if not free or any(key.part == LORA_A for key in tensors):
        return tensors
    d_out, d_in = free[0].linear or (0, 0)
    zeros = np.zeros((1, d_in), np.float32), np.zeros((d_out, 1), np.float32)
    return {**tensors, **dict(zip(keys_of(free[0].name), zeros, strict=True))}


def _factors(tensors: Tensors) -> dict[str, Array]:
    return {
        f"{_PREFIX}{key.group}.{key.part}.weight": np.ascontiguousarray(value)
        for key, value in tensors.items()
        if key.part in (LORA_A, LORA_B)
    }


def _dense(
    groups: set[GroupName], specs: Mapping[GroupName, GroupSpec], tensors: Tensors, base: Tensors
) -> dict[str, Array]:
    found = dict[str, Array]()
    for name in sorted(groups):
        for part in specs[name].parts:
            key = ParamKey(name, part)
            value = _base_value(base, key)
            if key in tensors:
                value = (value + tensors[key]).astype(np.float32)
            found[_PREFIX + parameter_name(specs[name], part)] = value
    return found


def _base_value(base_values: Tensors, key: ParamKey) -> Array:
    if key not in base_values:
        raise ModelError(f"the base's own value of {key} is needed to publish, and was not given")
    return np.ascontiguousarray(base_values[key])


def _peft_config(
    recipe: SharedRecipe,
    specs: Mapping[GroupName, GroupSpec],
    tensors: Tensors,
    dense: set[GroupName],
    scale: float,
) -> dict[str, Any]:
    found = {str(key.group): value.shape[0] for key, value in tensors.items() if key.part == LORA_A}
    ranks = dict(sorted(found.items()))
    rank = max(ranks.values(), default=1)
    saved = sorted({module for name in dense for module in _modules(specs[name])})
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": recipe.model.name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha_of(rank, scale),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": {name: alpha_of(rank, scale) for name, rank in ranks.items()},
        "modules_to_save": saved or None,
    }


def _modules(spec: GroupSpec) -> set[str]:
    """The modules peft has to save for a dense group."""
    if spec.kind != "head":
        return {str(spec.name)}
    return {spec.role} if spec.role else {part.partition(".")[0] for part in spec.parts}


def _card(
    recipe: SharedRecipe, description: ModelDescription, tasks: Sequence[TaskInfo]
) -> dict[str, Any]:
    labels = [label for task in tasks for label in task.labels]
    return {
        "format": 1,
        "base_digest": description.base_digest,
        "seed": recipe.seed,
        "model": recipe.model.model_dump(mode="json"),
        "labels": list(dict.fromkeys(labels)),
        "tasks": [{"name": task.name, "labels": list(task.labels)} for task in tasks],
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

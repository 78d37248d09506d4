"""Which tensors belong together: groups found in any transformers architecture."""

from __future__ import annotations

import re
from typing import Final

from torch import nn
from transformers.pytorch_utils import Conv1D

from strategies.types import HEAD, GroupKind, GroupName, GroupSpec

_HEAD_NAMES: Final = (
    "classifier",
    "score",
    "pre_classifier",
    "cls_classifier",
    "distillation_classifier",
)
_NORM = re.compile(r"(Layer|RMS|Group|Batch)?Norm", re.IGNORECASE)


def find_groups(model: nn.Module, *, num_labels: int) -> tuple[GroupSpec, ...]:
    """Every parameter of ``model`` in exactly one group, in the model's own order.

    The classification head, all of it, is the one group ``head``, whose role is its module's name,
    or empty where several modules make it up and the parts carry their names.  Every other module
    that holds parameters itself is a group of its own.  Tied parameters belong to the first module
    that has them.
    """
    head_names = head_modules(model) if num_labels else ()
    groups, head_parts, seen = list[GroupSpec](), dict[str, tuple[int, ...]](), set[int]()
    for name, module in model.named_modules():
        parts = {
            part: parameter
            for part, parameter in module.named_parameters(recurse=False)
            if id(parameter) not in seen
        }
        seen |= {id(parameter) for parameter in parts.values()}
        if not parts:
            continue
        shapes = {part: tuple(parameter.shape) for part, parameter in parts.items()}
        owner = next((h for h in head_names if name == h or name.startswith(f"{h}.")), None)
        if owner is None:
            groups.append(_spec(name, module, shapes))
            continue
        head_parts |= {_head_part(name, owner, head_names, part): s for part, s in shapes.items()}
    if head_parts:
        role = head_names[0] if len(head_names) == 1 else ""
        groups.append(GroupSpec(name=HEAD, kind="head", role=role, block=None, parts=head_parts))
    return tuple(groups)


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """The names of the top-level modules that are the classification head."""
    return tuple(name for name, _ in model.named_children() if name in _HEAD_NAMES)


def _head_part(name: str, owner: str, head_names: tuple[str, ...], part: str) -> str:
    inner = ".".join([*name.removeprefix(owner).strip(".").split("."), part]).strip(".")
    return inner if len(head_names) == 1 else f"{owner}.{inner}"


def _spec(name: str, module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> GroupSpec:
    kind = _kind(name, module)
    linear = None
    if kind == "linear":
        rows, columns = shapes["weight"]
        linear = (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
    return GroupSpec(
        name=GroupName(name),
        kind=kind,
        role=name.rpartition(".")[2],
        block=_block(name),
        parts=shapes,
        linear=linear,
    )


def _kind(name: str, module: nn.Module) -> GroupKind:
    if isinstance(module, nn.Embedding | nn.Conv2d) or "embed" in name.rpartition(".")[2].lower():
        return "embedding"
    if _NORM.search(type(module).__name__):
        return "norm"
    if isinstance(module, nn.Linear | Conv1D):
        # An output layer over the vocabulary is no place for LoRA by default, and often tied.
        return "other" if name.rpartition(".")[2] in ("lm_head", "embed_out") else "linear"
    return "other"


def _block(name: str) -> int | None:
    """The first number in the module's path: transformer blocks are the outermost numbered list."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)

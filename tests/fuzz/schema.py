"""What assignments, profiles and requests must look like, written down a second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from strategies import limits
from tests.fuzz.frame import Frame, Invalid, id_ok, name_ok, need, read, real, text_ok, whole

Check = Callable[[Any], bool]
Schema = dict[str, Check]


def integer(low: int, high: float) -> Check:
    return lambda value: whole(value, low, high)


def number(low: float, high: float) -> Check:
    return lambda value: real(value, low, high)


def maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def several(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def mapping(key: Check, check: Check) -> Check:
    return lambda v: isinstance(v, dict) and all(key(k) and check(x) for k, x in v.items())


def one_of(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


def noun(required: Schema, optional: Schema | None = None) -> Check:
    both = required | (optional or {})

    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and required.keys() <= value.keys() <= both.keys()
            and all(both[name](item) for name, item in value.items())
        )

    return check


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def anything(value: Any) -> bool:
    """A hyper-parameter: any JSON whose numbers are finite and whose text is safe."""
    if isinstance(value, dict):
        return all(name_ok(k) and anything(x) for k, x in value.items())
    if isinstance(value, list):
        return all(map(anything, value))
    if isinstance(value, str):
        return text_ok(value)
    return value is None or isinstance(value, bool) or real(value, -1e300, 1e300)


def assignment_id(value: Any) -> bool:
    parts = value.split("/") if isinstance(value, str) else ["", ""]
    return value == "" or (len(parts) <= 8 and all(map(id_ok, parts)))


def held_key(value: str) -> bool:
    return value.count("|") == 1 and all(map(name_ok, value.split("|")))


INDEX, SIZE = 2**31 - 1, 2.0**31
index, count, num_bytes = integer(0, INDEX), integer(0, 10**12), integer(0, 2**50)
small, rate = number(0, 1e12), number(0, 1e30)
positive = integer(1, INDEX)
text: Check = text_ok
STATISTICS = (
    "gradient-energy", "signal-to-noise", "relative-gradient", "fisher", "descent",
    "input-spectrum", "sensitivity", "component-norms", "pair-curvature", "class-counts",
    "class-sums", "moments",
)  # fmt: skip
choice = noun({"name": text}, {"params": mapping(name_ok, anything)})
group_plan = lambda v: (  # noqa: E731 - a check among checks
    noun({"rank": positive}, {"train_a": flag, "train_b": flag, "kind": one_of("low-rank")})(v)
    or noun({}, {"kind": one_of("dense")})(v)
)
optimization = noun({
    "learning_rate": small, "head_learning_rate": small, "weight_decay": small,
    "max_grad_norm": small, "schedule": one_of("constant", "linear", "cosine", "one-cycle"),
})  # fmt: skip
replay = noun(
    {"policy": choice, "capacity": count, "share": number(0, 1)},
    {"capacity_bytes": maybe(num_bytes), "measured": flag},
)
work = noun(
    {
        "tasks": several(index), "steps": index, "batch_size": positive, "first_step": index,
        "total_steps": index, "optimization": optimization, "methods": several(choice),
        "replay": replay,
    },
    {
        "compression": several(choice), "reports": several(one_of(*STATISTICS)),
        "source": one_of("tasks", "memory"), "micro_batch_size": maybe(positive),
        "checkpointing": flag,
        "keeps": flag,
    },
)  # fmt: skip
probe = noun(
    {
        "tasks": several(index), "statistics": several(one_of(*STATISTICS)),
        "batches": maybe(index), "batch_size": positive, "learning_rate": small,
    },
    {"max_rank": index, "remembered": flag, "precision": one_of("float32", "float16")},
)  # fmt: skip
evaluation = noun(
    {"tasks": several(index), "seen_tasks": several(index)},
    {"max_examples": maybe(count), "release": maybe(index), "keep": flag},
)
ASSIGNMENT = noun(
    {
        "assignment_id": assignment_id, "run_id": id_ok, "client_id": id_ok, "step_index": index,
        "task_index": integer(-1, INDEX), "round_index": index,
        "recipe": lambda v: text_ok(v, limits.MAX_RECIPE_CHARS), "base_digest": text,
        "groups": mapping(name_ok, group_plan), "scale": small, "seed": integer(0, 2**64 - 1),
    },
    {
        "work": maybe(work), "evaluation": maybe(evaluation), "probe": maybe(probe),
        "met": several(index), "downlink": several(choice),
        "kept": mapping(name_ok, several(text)),
        "held": noun({}, {"step": integer(-1, INDEX), "ranks": mapping(held_key, index)}),
    },
)  # fmt: skip
axes = several(integer(0, SIZE))
group_spec = noun(
    {
        "name": name_ok, "kind": one_of("linear", "norm", "embedding", "head", "other"),
        "role": text, "block": maybe(index),
        "parts": mapping(name_ok, lambda v: axes(v) and len(v) <= limits.MAX_AXES),
    },
    {"linear": maybe(lambda v: several(integer(1, SIZE))(v) and len(v) == 2)},
)  # fmt: skip
model = noun({
    "base_digest": text, "num_parameters": count, "num_blocks": index,
    "groups": several(group_spec),
})  # fmt: skip
PROFILE = noun(
    {
        "client_id": id_ok, "kind": one_of("edge", "gpu", "cpu"), "device": text,
        "memory_bytes": num_bytes, "num_train": several(count), "num_test": several(count),
        "tasks": several(noun({"name": text, "labels": several(text)})), "model": model,
    },
    {
        "tokens_per_example": small, "flops_per_second": maybe(rate),
        "uplink_bytes_per_second": maybe(rate), "downlink_bytes_per_second": maybe(rate),
        "link_error": maybe(small), "exchange_seconds": number(0, limits.MAX_SECONDS),
        "memory_limit_bytes": maybe(num_bytes), "resident_bytes": num_bytes,
        "activation_bytes": maybe(num_bytes), "longest_example": maybe(count),
        "step_seconds": maybe(number(0, limits.MAX_SECONDS)), "free_disk_bytes": maybe(num_bytes),
        "uplink_limit_bytes_per_second": maybe(rate), "dtypes": several(text), "backprop": flag,
        "recomputes": flag,
        "keeps": flag,
    },
)  # fmt: skip
REQUEST = noun({
    "recipe": lambda v: text_ok(v, limits.MAX_RECIPE_CHARS), "groups": several(text),
})  # fmt: skip


def verdict(message: bytes, kind: str) -> str:
    """Why the bytes are no valid message of ``kind``; empty if they are one."""
    try:
        frame = read(message)
        need(frame.kind == kind, "kind")
        _fits(frame, kind)
    except Invalid as error:
        return str(error)
    return ""


def _fits(frame: Frame, kind: str) -> None:
    body = frame.body
    if kind == "assignment":
        need(ASSIGNMENT(body), "assignment")
    elif kind == "recipe":
        need(REQUEST(body) and not frame.tensors, "request")
    else:
        need(PROFILE(body), "profile")
        need(len(body["tasks"]) == len(body["num_train"]) == len(body["num_test"]), "tasks")
        names = [group["name"] for group in body["model"]["groups"]]
        need(len(set(names)) == len(names), "names of groups")
        need(all(v.dtype == np.float32 for v in frame.tensors.values()), "base values")
        need(all(np.isfinite(v).all() for v in frame.tensors.values()), "base values")

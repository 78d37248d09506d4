"""Layer selection at budgets of 1, 2 and 3 of MiniLM's 6 blocks: quality against cost.

    python -m benchmarks.selection --model PATH_OF_MINILM --json -

``green`` chooses tensors, not blocks; its budget is the share of the FLOPs of a full step that the
top blocks take at the same budget, so that it may cost what ``top`` costs, and ``green-half`` has
half of the cost of ``all``.  Seconds per step and peak memory are the clients' own.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.clinc150 import (
    data_settings,
    environment,
    options_of,
    run_once,
    traffic,
    write,
)
from clients.model import build_base
from strategies.cost import CostModel
from strategies.recipe import ModelRecipe
from strategies.types import Dense, GroupName, GroupPlan, LowRank, RoundBudget

BUDGETS: Final = (1, 2, 3)
_BLOCK_WISE: Final = ("top", "random", "fisher", "selective")


def cases(top_shares: Mapping[int, float]) -> dict[str, str]:
    """The layer selection of every case, as a run file has it."""
    found = {"all": '{name="all"}', "green-half": '{name="green", share=0.5}'}
    for budget in BUDGETS:
        for name in _BLOCK_WISE:
            found[f"{name}-{budget}"] = f'{{name="{name}", blocks={budget}}}'
        found[f"green-{budget}"] = f'{{name="green", share={top_shares[budget]:.4f}}}'
    return found


def shares_of_the_top(model: str) -> dict[int, float]:
    """FLOPs of a step that trains the top blocks, over those of one that trains all."""
    groups = build_base(
        ModelRecipe(task="sequence-classification", name=model, pooling="mean", head="cosine"),
        num_labels=75,
        vocab_size=None,
        seed=0,
        public_images=None,
        cache_folder=Path(),
    ).description.groups
    costs = CostModel(groups=groups, budget=RoundBudget(), tokens_per_example=1.0)
    num_blocks = max(group.block for group in groups if group.block is not None) + 1

    def flops(blocks: int) -> float:
        plans: dict[GroupName, GroupPlan] = {
            group.name: LowRank(rank=8) if group.linear else Dense()
            for group in groups
            if group.kind == "head"
            or (group.kind == "linear" and (group.block or 0) >= num_blocks - blocks)
        }
        return costs.flops_per_token(plans)

    return {budget: flops(budget) / flops(num_blocks) for budget in BUDGETS}


def measure(name: str, choice: str, settings: list[str]) -> dict[str, Any]:
    """One case, one seed."""
    shown, rounds = run_once(f"selection-{name}", [f"strategy.layer_selection={choice}", *settings])
    replies = [
        reply for r in rounds if r.kind == "train" for reply in r.replies if reply.status == "ok"
    ]
    return {
        "acc": shown["acc"],
        "forgetting": shown["forgetting"],
        **traffic(rounds),
        "seconds_per_step": statistics.median(
            r.seconds["train"] / r.metrics["steps"] for r in replies
        ),
        "flops_per_step": statistics.mean(r.metrics["flops"] / r.metrics["steps"] for r in replies),
        "step_memory_bytes": statistics.median(r.metrics["step_memory_bytes"] for r in replies),
        "peak_memory_bytes": max(reply.peak_memory_bytes for reply in replies),
        "probe_seconds": sum(
            reply.seconds.get("probe", 0.0) for r in rounds for reply in r.replies
        ),
        "wall_seconds": shown["wall_seconds"],
    }


def main() -> None:
    """Run every case with every seed; medians over seeds, cost relative to ``all``."""
    options = options_of(__doc__ or "").parse_args()
    every = cases(shares_of_the_top(options.model))
    chosen = {n: c for n, c in every.items() if not options.only or n in options.only}
    with TemporaryDirectory() as folder:
        data = data_settings(options.domains, Path(folder))
        common = [f'model.name="{options.model}"', *data, *options.set]
        runs = {
            name: [measure(name, choice, [*common, f"seed={seed}"]) for seed in options.seeds]
            for name, choice in chosen.items()
        }
    medians = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for name, found in runs.items()
    }
    if "all" in medians:
        for row in medians.values():
            row["relative_flops"] = row["flops_per_step"] / medians["all"]["flops_per_step"]
    write(
        {
            "cases": medians,
            "seeds": options.seeds,
            "domains": options.domains,
            "runs": runs,
            **environment(),
        },
        options.json,
    )


if __name__ == "__main__":
    sys.exit(main())

"""The suite: every benchmark, what its main figures mean, and what they should be."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_OPERATORS: Final = {">=": operator.ge, "<=": operator.le, "==": operator.eq}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a benchmark's JSON.

    ``path`` names it from the outermost key in, parted by ``|``, since keys may hold dots and
    slashes.  ``target`` is empty, or a comparison such as ``<= 0.05``.
    """

    path: str
    meaning: str
    target: str = ""

    @property
    def name(self) -> str:
        return self.path.replace("|", " · ")

    def of(self, result: Mapping[str, Any]) -> float | None:
        """The number; None if the result does not have it."""
        found: Any = result
        for key in self.path.split("|"):
            if not isinstance(found, Mapping) or key not in found:
                return None
            found = found[key]
        return float(found) if isinstance(found, int | float) else None

    def met(self, value: float) -> bool | None:
        """Whether the target is met; None where there is none."""
        if not self.target:
            return None
        sign, bound = re.fullmatch(r"(>=|<=|==) (\S+)", self.target).groups()  # type: ignore[union-attr]
        return bool(_OPERATORS[sign](value, float(bound)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One module of the suite: ``python -m benchmarks.<its name> --json FILE``."""

    measures: str
    peer: str
    """What it is compared with; empty if with nothing."""
    minutes: float
    """On two idle cores, about."""
    figures: tuple[Figure, ...]
    arguments: str = ""
    """What the suite runs it with, besides model and JSON; ``{model}`` is the model's path."""
    needs_model: bool = True


CASES: Final[Mapping[str, Case]] = {
    "aggregation": Case(
        measures="exact merging of 20 clients of mixed ranks, and its memory for 1 000 clients",
        peer="forming ΔW and taking its SVD",
        minutes=1,
        needs_model=False,
        figures=(
            Figure("speedup", "seconds of the dense definition over ours", ">= 20"),
            Figure("max_relative_error", "of the 16 largest singular values", "<= 1e-6"),
            Figure("peak_bytes_100", "largest allocation after 100 clients"),
            Figure("peak_bytes_1000", "after 1 000 clients: the same"),
        ),
    ),
    "bandwidth": Case(
        measures="rank policies on lines from 64 kbit/s to 20 Mbit/s with a deadline",
        peer="fixed rank 16 without a deadline",
        minutes=8,
        arguments="--only fixed-no-deadline spectral-int8",
        figures=(
            Figure("policies|fixed-no-deadline|acc", "ACC without a deadline"),
            Figure("policies|fixed-no-deadline|bytes_up", "bytes sent up"),
            Figure("policies|spectral-int8|acc", "ACC of ranks by each client's line, int8 up"),
            Figure("policies|spectral-int8|bytes_up", "bytes sent up"),
            Figure("policies|spectral-int8|deadline_met", "share of client-rounds in time", "== 1"),
        ),
    ),
    "bytes_to_target": Case(
        measures="bytes up and down until 45 intents are told apart (ACC >= 0.85)",
        peer="stock Flower LoRA app, r = 16, float32, FedAvg",
        minutes=24,
        figures=(
            Figure("ours|compressed|ratio", "of the peer's bytes, trained", "<= 0.05"),
            Figure("ours|compressed|ratio_to_one_round", "of the peer's first round", "<= 0.05"),
            Figure("ours|analytic|ratio", "head solved from sums", "<= 0.05"),
            Figure("ours|nearest-class-mean|ratio", "the trivial baseline"),
            Figure("ours|compressed|acc", "ACC at the end of the run"),
            Figure("ours|compressed|bytes", "training, both ways, as Flower sends them"),
            Figure("stock|pooled|bytes", "until the target, all domains at once"),
            Figure("stock|sequence|acc", "best ACC, one domain after the other"),
        ),
    ),
    "continual": Case(
        measures="what is forgotten over five domains of CLINC150, three rounds each",
        peer="sequential FedAvg-LoRA, nearest class mean",
        minutes=8,
        arguments=(
            "--set learning.rounds_per_task=3 --only nearest-class-mean finetune er analytic"
        ),
        figures=(
            Figure("methods|nearest-class-mean|acc", "ACC of the trivial baseline"),
            Figure("methods|finetune|acc", "ACC of training without replay"),
            Figure("methods|er|acc", "ACC with replay of 5 examples per class"),
            Figure("methods|analytic|acc", "ACC of the head solved from sums"),
            Figure("methods|analytic|forgetting", "mean drop from a task's best"),
        ),
    ),
    "deployment": Case(
        measures="seconds of a round beyond local training, SuperLink and two SuperNodes",
        peer="stock Flower LoRA app on the same processes",
        minutes=5,
        figures=(
            Figure("ours_overhead_seconds", "median of ours"),
            Figure("stock_overhead_seconds", "median of the stock app"),
            Figure("ratio", "ours over the stock app's", "<= 0.5"),
        ),
    ),
    "hostile": Case(
        measures="ACC with 6 of 20 clients hostile",
        peer="exact merging, unprotected",
        minutes=12,
        arguments=(
            "--domains 2 --options exact multi-krum --attacks scaled sign-flipped --set "
            "learning.rounds_per_task=2 --set learning.local_steps=4"
        ),
        figures=(
            Figure("options|exact|clean|acc", "ACC, nobody hostile"),
            Figure("options|exact|scaled|acc", "updates 1 000 times as long, unprotected"),
            Figure(
                "options|multi-krum|scaled|points_from_clean_exact", "points, protected", ">= -3"
            ),
            Figure("options|multi-krum|sign-flipped|points_from_clean_exact", "points", ">= -3"),
        ),
    ),
    "local_step": Case(
        measures="seconds and memory of a local step, of all blocks and of the top ones",
        peer="a loop written by hand over the same peft model, and the cost model",
        minutes=6,
        figures=(
            Figure("by_hand|ratio", "ours over the loop by hand, full LoRA", "<= 1.02"),
            Figure("by_hand|largest_gap_of_losses", "relative: both compute the same", "<= 1e-3"),
            Figure("largest_over_proportional", "top blocks, over the cost model's", "<= 1.25"),
            Figure("peaks|ours|above_bytes", "peak of our process above its start"),
            Figure("peaks|hand|above_bytes", "peak of the loop by hand"),
        ),
    ),
    "peers": Case(
        measures="one small job: seconds per round, efficiency, bytes",
        peer="pfl-research and NVFlare's simulator, where they are installed",
        minutes=10,
        figures=(
            Figure("systems|ours|round_seconds", "median round of ours"),
            Figure("systems|ours|efficiency", "local training over cores x wall"),
            Figure("systems|pfl|ours_over_round_seconds", "ours over pfl-research's"),
            Figure("systems|nvflare|ours_over_round_seconds", "ours over NVFlare's"),
            Figure("systems|nvflare|ours_over_bytes_per_round", "ours over NVFlare's"),
        ),
    ),
    "scale": Case(
        measures="10 000 clients, 100 000 replies on record, and how cost grows with each size",
        peer="",
        minutes=20,
        needs_model=False,
        figures=(
            Figure("clients|rounds_per_minute", "50 rounds of 100 clients of 10 000"),
            Figure("clients|resident_ratio", "memory after round 50 over round 5", "<= 1.1"),
            Figure("clients|database_bytes", "size of the run database"),
            Figure("replies|ratio", "a round with 100 000 replies on record over before", "<= 1.1"),
            Figure(
                "growth-clients|exponents|steps_processor_seconds",
                "of processor time in the number of clients",
            ),
            Figure("growth-cohort|exponents|steps_processor_seconds", "in the size of the cohort"),
        ),
    ),
    "selection": Case(
        measures="layer selection on budgets of one to three blocks: quality against cost",
        peer="training all layers",
        minutes=4,
        arguments="--domains 3 --set learning.rounds_per_task=3 --only all green-half top-1",
        figures=(
            Figure("cases|all|acc", "ACC of training everything"),
            Figure("cases|green-half|acc", "ACC at half of the FLOPs"),
            Figure("cases|green-half|relative_flops", "of training everything", "<= 0.5"),
            Figure("cases|top-1|acc", "ACC of the last block"),
        ),
    ),
    "simulation": Case(
        measures="the same work simulated: walls, and the share of them that is local training",
        peer="stock Flower LoRA app under flwr run",
        minutes=12,
        figures=(
            Figure("ours.full|efficiency", "clients' handlers over cores x wall", ">= 0.97"),
            Figure("stock|efficiency", "the same of the stock app"),
            Figure("ours.full|rounds_wall_ratio", "wall of the rounds over stock's", "<= 0.80"),
            Figure("ours.top2|rounds_wall_ratio", "on the top two blocks", "<= 0.30"),
            Figure("ours.full|total_ratio", "from command to end, over stock's"),
        ),
    ),
    "startup": Case(
        measures="seconds from the command to the first local step",
        peer="stock Flower LoRA app under flwr run",
        minutes=5,
        figures=(
            Figure("seconds_to_first_local_step|ours", "median of ours"),
            Figure("seconds_to_first_local_step|stock", "median of the stock app"),
            Figure("ratio", "ours over the stock app's", "<= 0.6"),
        ),
    ),
    "ui": Case(
        measures="milliseconds of every page on a database of 1 000 runs",
        peer="",
        minutes=10,
        needs_model=False,
        figures=(
            Figure("pages|/|median_ms", "the list of runs", "<= 300"),
            Figure("pages|/runs/{whole}|median_ms", "a run's page", "<= 300"),
            Figure("pages|/compare (4 runs)|median_ms", "four runs side by side"),
        ),
    ),
}

"""Rank policies on slow lines: what they send, whether it arrives in time, and what is learnt.

    python -m benchmarks.bandwidth --model PATH_OF_MINILM --json -

CLINC150 over 20 clients whose uplinks spread from 64 kbit/s to 20 Mbit/s, evenly in logarithm
(downlinks four times that), on simulated devices, with a deadline per round.  ``fixed`` without a
deadline is the ceiling; with it, whoever cannot send rank 16 in time is never heard.  A policy's
``deadline_met`` is the share of its client-rounds that ended in time.
"""

from __future__ import annotations

import statistics
import sys
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
from orchestrator.store.base import RoundRecord

DEADLINE_SECONDS: Final = 60.0
LINKS: Final = [
    'links.name="constant"',
    "links.uplink_bytes_per_second=[8e3, 2.5e6]",
    "links.downlink_bytes_per_second=[32e3, 10e6]",
    "links.flops_per_second=2e10",
]
_DEADLINE: Final = f"federation.deadline_seconds={DEADLINE_SECONDS}"
_INT8: Final = 'strategy.compression=[{name="int8"}]'
_FIXED: Final = 'strategy.rank={name="fixed", rank=16}'
_SPECTRAL: Final = 'strategy.rank={name="spectral", rank=16, bytes_per_round=1.2e6}'
_AIRLLM: Final = 'strategy.rank={name="airllm", rank=16}'
POLICIES: Final[dict[str, list[str]]] = {
    "fixed-no-deadline": [_FIXED],
    "fixed": [_FIXED, _DEADLINE],
    "fixed-int8": [_FIXED, _DEADLINE, _INT8],
    "hetlora": ['strategy.rank={name="hetlora", rank=16}', _DEADLINE],
    "spectral": [_SPECTRAL, _DEADLINE],
    "spectral-int8": [_SPECTRAL, _DEADLINE, _INT8, 'strategy.downlink="fp16"'],
    "airllm": [_AIRLLM, _DEADLINE],
}


def measure(name: str, settings: list[str]) -> dict[str, Any]:
    """One policy, one seed."""
    shown, rounds = run_once(f"bandwidth-{name}", [*LINKS, *POLICIES[name], *settings])
    training = [record for record in rounds if record.kind == "train"]
    seconds = [s for record in training for s in _seconds(record)]
    ranks = [rank for r in training for reply in r.replies for rank in reply.ranks.values() if rank]
    return {
        "acc": shown["acc"],
        "forgetting": shown["forgetting"],
        **traffic(rounds),
        "deadline_met": sum(s <= DEADLINE_SECONDS for s in seconds) / len(seconds),
        "client_rounds": len(seconds),
        "mean_rank": statistics.mean(ranks),
        "simulated_seconds": sum(record.seconds["simulated"] for record in rounds),
        "wall_seconds": shown["wall_seconds"],
    }


def _seconds(record: RoundRecord) -> list[float]:
    """What each client's round took on its line; more than the deadline if it was missed."""
    return [
        reply.seconds["total"] if reply.status == "ok" else float("inf") for reply in record.replies
    ]


def main() -> None:
    """Run every policy with every seed; medians over seeds."""
    options = options_of(__doc__ or "").parse_args()
    names = options.only or list(POLICIES)
    with TemporaryDirectory() as folder:
        data = data_settings(options.domains, Path(folder))
        common = [f'model.name="{options.model}"', *data, *options.set]
        runs = {
            name: [measure(name, [*common, f"seed={seed}"]) for seed in options.seeds]
            for name in names
        }
    policies = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for name, found in runs.items()
    }
    write(
        {
            "policies": policies,
            "seeds": options.seeds,
            "domains": options.domains,
            "deadline_seconds": DEADLINE_SECONDS,
            "runs": runs,
            **environment(),
        },
        options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
